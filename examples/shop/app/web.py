"""API: `uvicorn app.web:api`."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from app import jobs
from app.cache import async_news, channel
from app.db import Order, Session
from app.settings import settings

api = FastAPI(title="Shop", docs_url=None if settings.shop_env == "production" else "/docs")


class NewOrder(BaseModel):
    """What a customer sends."""

    articles: Annotated[list[str], Field(min_length=1, max_length=100)]


@api.get("/healthz")
def healthz() -> dict[str, str]:
    """Look whether the database answers, and has its tables."""
    try:
        with Session() as session:
            session.execute(select(Order.id).limit(1))
    except SQLAlchemyError as error:
        raise HTTPException(503, "the database does not answer") from error
    return {"status": "ok", "env": settings.shop_env}


@api.post("/orders", status_code=201)
def create(new: NewOrder) -> dict[str, Any]:
    """Take an order."""
    with Session.begin() as session:
        session.add(order := Order(articles=new.articles))
        session.flush()
        order_id = order.id
    jobs.start.delay(order_id=order_id)
    return {"id": order_id, "status": "new"}


@api.get("/orders/{order_id}")
def show(order_id: int) -> dict[str, Any]:
    """Show an order."""
    with Session() as session:
        order = session.get(Order, order_id)
    if order is None:
        raise HTTPException(404, "no such order")
    return {"id": order.id, "articles": order.articles, "status": order.status, "total": order.total}


@api.get("/orders/{order_id}/events")
async def events(order_id: int) -> StreamingResponse:
    """Stream an order's status until it has ended (server-sent events)."""
    await run_in_threadpool(show, order_id)

    async def stream() -> AsyncIterator[str]:
        async with async_news.pubsub() as pubsub:
            await pubsub.subscribe(channel(order_id))
            async for message in pubsub.listen():
                # What was published before this one listened is in the database.
                began = message["type"] == "subscribe"
                status = (await run_in_threadpool(show, order_id))["status"] if began else message["data"]
                yield f"data: {status}\n\n"
                if status in {"done", "failed"}:
                    return

    return StreamingResponse(stream(), media_type="text/event-stream")


@api.post("/reports", status_code=202)
def order_report() -> dict[str, str]:
    """Write the report now."""
    return {"task": jobs.report.delay().id}
