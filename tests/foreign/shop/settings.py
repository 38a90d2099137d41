"""Its configuration, as many applications have it."""

import json
import os

from kombu import Exchange, Queue

SHOP_BROKER_URL = os.environ["REDIS_URL"]
SHOP_RESULT_BACKEND = os.environ.get("RESULTS_URL")
SHOP_TASK_DEFAULT_QUEUE = "default"
SHOP_TASK_QUEUES = [Queue("default"), Queue("mails")]
SHOP_TASK_ROUTES = {"shop.jobs.mail": {"queue": "mails"}}
SHOP_BEAT_SCHEDULE = {"every-second": {"task": "shop.jobs.tick", "schedule": 1.0}}
SHOP_TIMEZONE = "Europe/Berlin"

# What an installation says otherwise.
for name, value in json.loads(os.environ.get("SHOP_MORE", "{}")).items():
    globals()[f"SHOP_{name.upper()}"] = value
if "SHOP_TOPIC" in os.environ:
    SHOP_TASK_QUEUES += [Queue("orders", Exchange("shop", type="topic"), routing_key="orders.#")]
