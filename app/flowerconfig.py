"""Flower's configuration file (``--conf``); every variable here that is named like an option becomes that option.

``celery -A app.agents.worker flower`` uses it without being told.
"""

from app.agents import flower_gate
from app.agents.worker import celery_app
from app.settings import get_settings
from celery_durable.address import RedisAddress
from celery_durable.connection import sentinel_options
from celery_durable.options import current

settings = get_settings()
if credentials := settings.flower_basic_auth:
    basic_auth = credentials.get_secret_value().split()
read_only = settings.flower_read_only

# Flower counts queues with a client of its own that looks here; workers would show it to whoever inspects them.
broker = RedisAddress.parse(current().broker_url)
if broker.sentinel:
    celery_app.conf.broker_transport_options["sentinel_kwargs"] = sentinel_options(broker, current().sentinel_password)

flower_gate.install()
