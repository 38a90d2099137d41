"""Our API with a path that fails: ``uvicorn tests.app.broken_api:app``."""

from app.main import app

__all__ = ["app"]


@app.get("/broken")
def broken() -> None:
    """Fail in a way that nobody has foreseen."""
    raise RuntimeError("on purpose")
