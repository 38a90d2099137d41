"""Redis: prices of a minute, and news of orders."""

import redis
import redis.asyncio

from app.settings import settings

prices = redis.Redis.from_url(settings.cache_url, decode_responses=True)
news = redis.Redis.from_url(settings.news_url, decode_responses=True)
async_news = redis.asyncio.Redis.from_url(settings.news_url, decode_responses=True)


def channel(order_id: int) -> str:
    """Return where an order's changes are published."""
    return f"shop:orders:{order_id}"
