"""Tasks: `celery -A app.jobs worker`."""

import hashlib
import hmac
import logging
import time
from typing import Any

from celery import Celery, Task, chord
from kombu import Queue
from sqlalchemy import func, select, update

from app.cache import channel, news, prices
from app.db import Order, Session
from app.settings import settings

log = logging.getLogger(__name__)


class PriceServiceError(Exception):
    """The price service did not answer."""


class Job(Task):
    """A task of an order: the order fails with it."""

    abstract = True

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: dict[str, Any], einfo: Any) -> None:
        """Write it into the order."""
        if "order_id" in kwargs:
            change(kwargs["order_id"], status="failed")


celery = Celery("shop", task_cls=Job, broker=settings.broker_url, backend=settings.cache_url)
celery.conf.update(
    task_default_queue="default",
    task_queues=[Queue("default"), Queue("high"), Queue("reports")],
    task_routes={
        "app.jobs.start": {"queue": "high"},
        "app.jobs.finish": {"queue": "high"},
        "app.jobs.report": {"queue": "reports"},
    },
    task_acks_late=True,
    task_time_limit=60,
    timezone="Europe/Berlin",
    beat_schedule={"report": {"task": "app.jobs.report", "schedule": 60.0}},
)


def change(order_id: int, **values: Any) -> None:
    """Change an order, and publish its status."""
    with Session.begin() as session:
        session.execute(update(Order).where(Order.id == order_id).values(**values))
    news.publish(channel(order_id), values["status"])


@celery.task
def start(order_id: int) -> None:
    """Price all articles of an order at once."""
    with Session() as session:
        order = session.get_one(Order, order_id)
    change(order_id, status="pricing")
    parts = [price.s(article, order_id=order_id) for article in order.articles]
    chord(parts)(finish.s(order_id=order_id))


@celery.task(bind=True, autoretry_for=(PriceServiceError,), max_retries=3, default_retry_delay=1)
def price(self: Task, article: str, order_id: int) -> int:
    """Ask the price service; its answer holds for a minute."""
    if article == "unknown" or (article == "rare" and not self.request.retries):
        raise PriceServiceError(article)
    time.sleep(settings.price_seconds)
    if cached := prices.get(f"shop:price:{article}"):
        return int(cached)
    prices.set(f"shop:price:{article}", len(article), ex=60)
    return len(article)


@celery.task
def finish(prices: list[int], order_id: int) -> int:
    """Write the sum into the order, and mail the receipt."""
    change(order_id, status="done", total=sum(prices))
    mail.delay(order_id)
    return sum(prices)


@celery.task(acks_late=False)
def mail(order_id: int) -> str:
    """Mail a receipt: one that is lost is better than two."""
    receipt = hmac.new(settings.receipt_key.encode(), str(order_id).encode(), hashlib.sha256).hexdigest()
    log.info("receipt of order %s: %s", order_id, receipt[:8])
    return receipt


@celery.task
def report() -> dict[str, int]:
    """Count the orders of each status into a file."""
    with Session() as session:
        rows = session.execute(select(Order.status, func.count()).group_by(Order.status)).all()
    settings.upload_directory.mkdir(exist_ok=True)
    lines = [f"{status} {count}\n" for status, count in sorted(rows)]
    (settings.upload_directory / "report.txt").write_text("".join(lines))
    return dict(rows)
