"""Our API, with the same guarantees taken away as our worker."""

from tests.bench import our_worker  # must come first: it takes them away

# isort: split
from app.main import app

__all__ = ["app", "our_worker"]
