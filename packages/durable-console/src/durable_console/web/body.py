"""Reading and checking the body of a request."""

import asyncio
from typing import Any, TypeVar

from fastapi import HTTPException, Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

Model = TypeVar("Model", bound=BaseModel)

# Seconds in which the whole body must have arrived.
READ_BUDGET = 10
# Characters of a client's own key that an error message repeats.
MAX_SHOWN_PATH = 200


async def read_json(request: Request, limit: int, model: type[Model]) -> Model:
    """Read at most ``limit`` bytes of body and check them.

    Raises:
        HTTPException: 408, 413, 415 or 422, each with a sentence.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(415, "The Content-Type must be application/json.")
    if request.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
        raise HTTPException(
            415, "The body must be sent as it is, without a Content-Encoding.", headers={"Accept-Encoding": "identity"}
        )
    body = await _read(request, limit)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(["body", *map(str, problem["loc"])])[:MAX_SHOWN_PATH]
        raise HTTPException(422, f"{where}: {rule_of(problem)}.") from None


def rule_of(problem: Any) -> str:
    """Return the rule that pydantic found broken."""
    return str(problem["ctx"]["error"]) if problem["type"] == "value_error" else str(problem["msg"])


async def _read(request: Request, limit: int) -> bytes:
    too_large = HTTPException(413, f"The body is larger than {limit} bytes.")
    if int(request.headers.get("content-length", 0)) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(READ_BUDGET):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except ClientDisconnect:
        raise HTTPException(400, "The client went away before the whole body was here.") from None
    except TimeoutError:
        # Whatever may still come is not waited for.
        detail = f"The body did not arrive within {READ_BUDGET} s."
        raise HTTPException(408, detail, headers={"Connection": "close"}) from None
    return bytes(body)
