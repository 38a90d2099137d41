"""Settings of Celery that the guarantees need, and those that merely serve them.

The first are in force whatever the application says; the second stand behind its own, in front of Celery's defaults.
Serializers, routes, queues, time zone, result backend and logging are never touched.
"""

import ssl
from typing import Any

from celery import Celery

from celery_durable.address import RedisAddress
from celery_durable.connection import sentinel_options
from celery_durable.options import Options

# Seconds that a cold stop (QUIT) lets running tasks finish before it requeues them.
SOFT_SHUTDOWN_TIMEOUT = 10
LEASED = "celery_durable.beat:leased"
# Of a web process: redis_connection bounds each step, and no step is tried again.
NO_RETRIES = {"max_retries": 0, "interval_start": 0, "interval_step": 0, "interval_max": 0}


def required(options: Options) -> dict[str, Any]:
    """Return what must hold."""
    return {
        "worker_consumer": "celery_durable.worker.consumer:Consumer",
        # Celery goes by the task's id, which may be sent again; worker/request.py goes by the message.
        "worker_deduplicate_successful_tasks": False,
        # A task whose process was killed is retried like any other; rejecting it instead would repeat it for ever.
        "task_retry_on_worker_lost": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        # Retry for ever, and store a result before its message is acknowledged, however long Redis is away.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "result_backend_always_retry": options.client_profile != "web",
        "result_backend_max_sleep_between_retries_ms": 1000,
    }


def preferred(options: Options) -> dict[str, Any]:
    """Return what holds unless the application says otherwise."""
    return {
        "task_acks_late": True,
        "task_track_started": True,
        "task_publish_retry": options.client_profile != "web",
        "result_extended": True,
        # Flower does not read it in the URL, and Celery wants to be told to verify.
        "broker_use_ssl": _tls(options.broker_url),
        "redis_backend_use_ssl": _tls(options.result_url),
        "worker_prefetch_multiplier": 1,
        "worker_soft_shutdown_timeout": SOFT_SHUTDOWN_TIMEOUT,
        "redis_socket_connect_timeout": 2,
        "redis_socket_timeout": 5,
        "redis_retry_on_timeout": True,
        "redis_socket_keepalive": True,
    }


def apply(app: Celery, options: Options) -> None:
    """Set them in the configuration of ``app``, which is loaded."""
    conf: Any = app.conf
    # Not by add_defaults, which puts them in front of the application's own.
    for maps in (conf.defaults, conf.maps):
        maps.insert(len(maps) - 1, preferred(options))
    conf.update(required(options))
    if options.beat and conf.beat_scheduler != LEASED:
        celery: Any = app
        celery.durable_beat_scheduler = conf.beat_scheduler
        conf.beat_scheduler = LEASED
    web = options.client_profile == "web"
    conf.broker_transport_options = {
        # Seconds until a connection that is cut without a word is noticed.
        "health_check_interval": 5,
        "socket_connect_timeout": 2,
        "socket_timeout": 3,
        "socket_keepalive": True,
        **_primary(options.broker_url, options.broker_primary),
        **conf.broker_transport_options,
        # One list for each queue: what a worker takes lies in one place.
        "priority_steps": [0],
        **(NO_RETRIES if web else {}),
    }
    conf.result_backend_transport_options = {
        "retry_policy": {"max_retries": 0 if web else 1, "interval_start": 0},
        **_primary(options.result_url, options.results_primary),
        **_sentinels(options),
        **(conf.result_backend_transport_options or {}),
    }


def _tls(url: str) -> dict[str, Any] | None:
    if not url.startswith(("rediss:", "sentinel:")):
        return None
    address = RedisAddress.parse(url)
    return {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": address.ca_file} if address.tls else None


def _primary(url: str, name: str) -> dict[str, str]:
    return {"master_name": name} if url.startswith("sentinel:") else {}


def _sentinels(options: Options) -> dict[str, Any]:
    if not options.result_url.startswith("sentinel:"):
        return {}
    address = RedisAddress.parse(options.result_url)
    return {"sentinel_kwargs": sentinel_options(address, options.sentinel_password)}
