"""Flower's configuration file (``--conf``); every variable here that is named like an option becomes that option.

``durable-flower`` uses it without being told.
"""

from celery_durable import masking
from celery_durable.address import RedisAddress
from celery_durable.connection import sentinel_options
from durable_console.application import celery_app, options
from durable_console.flower import gate
from durable_console.flower.settings import Settings

settings = Settings.from_environment()
# Hidden in logs, also where no file but a variable holds them.
masking.hide(settings.basic_auth)
basic_auth = list(settings.basic_auth)
read_only = settings.read_only

# Flower counts queues with a client of its own that looks here; workers would show it to whoever inspects them.
broker = RedisAddress.parse(options.broker_url)
if broker.sentinel:
    celery_app.conf.broker_transport_options["sentinel_kwargs"] = sentinel_options(broker, options.sentinel_password)

gate.install(settings.failed_login_limit, settings.trusted_proxies)
