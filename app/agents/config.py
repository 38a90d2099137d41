"""Celery's configuration, the same for worker, API, Flower and every command."""

import ssl
from typing import Any

from pydantic import SecretStr

from app.settings import Settings
from celery_durable import queue_names
from celery_durable.address import RedisAddress
from celery_durable.connection import sentinel_options
from celery_durable.options import Options

TASK_MODULES = ("app.agents.tasks.example_task",)
DEFAULT_QUEUE = queue_names.DEFAULT_QUEUE
DEFAULT_MAX_RETRIES = 3

# Seconds that a cold stop (QUIT) lets running tasks finish before it requeues them.
SOFT_SHUTDOWN_TIMEOUT = 10


def celery_config(settings: Settings) -> dict[str, Any]:
    """Translate the settings into Celery's own; all durations are seconds."""
    results = _address(settings.celery_result_backend)
    # celery_durable/connection.py bounds each step, and here nothing is tried again.
    web = settings.celery_client_profile == "web"
    return {
        "broker_url": settings.celery_broker_url.get_secret_value(),
        "result_backend": settings.celery_result_backend.get_secret_value(),
        "include": TASK_MODULES,
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "enable_utc": True,
        "timezone": "UTC",
        # Tasks
        "task_default_queue": DEFAULT_QUEUE,
        "task_routes": {task: {"queue": queue} for task, queue in settings.task_routes.items()},
        "task_track_started": True,
        "task_soft_time_limit": settings.task_soft_time_limit,
        "task_time_limit": settings.task_time_limit,
        "task_acks_late": True,
        # A task whose process was killed is retried like any other; rejecting it instead would repeat it for ever.
        "task_retry_on_worker_lost": True,
        "task_default_rate_limit": settings.task_default_rate_limit,
        # The health gate's probe (app/agents/queues.py) is no work of the application's.
        "task_annotations": {"celery.accumulate": {"rate_limit": "0"}},
        "task_default_max_retries": DEFAULT_MAX_RETRIES,  # no setting of Celery's: app.agents.worker applies it
        # Worker
        "worker_concurrency": settings.worker_concurrency,
        "worker_prefetch_multiplier": settings.worker_prefetch_multiplier,
        "worker_max_tasks_per_child": settings.worker_max_tasks_per_child,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_soft_shutdown_timeout": SOFT_SHUTDOWN_TIMEOUT,
        "worker_hijack_root_logger": False,
        # Broker: retry for ever, give up on a silent socket soon.
        "broker_use_ssl": _tls_options(settings.celery_broker_url),
        "redis_backend_use_ssl": _tls_options(settings.celery_result_backend),
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "task_publish_retry": not web,
        "broker_transport_options": {
            # One list for each queue: what a worker takes lies in one place.
            "priority_steps": [0],
            # Seconds until a connection that is cut without a word is noticed.
            "health_check_interval": 5,
            "socket_connect_timeout": 2,
            "socket_timeout": 3,
            "socket_keepalive": True,
            **({"max_retries": 0, "interval_start": 0, "interval_step": 0, "interval_max": 0} if web else {}),
            # How sentinels are reached is told by celery_durable.worker.transport.
            **_primary(settings.celery_broker_url, settings.broker_primary),
        },
        # Results: stored before the message is acknowledged, however long Redis is away.
        "result_expires": settings.result_expires,
        "result_extended": True,
        "result_backend_always_retry": not web,
        "result_backend_max_sleep_between_retries_ms": 1000,
        "result_backend_transport_options": {
            "retry_policy": {"max_retries": 0 if web else 1, "interval_start": 0},
            **_primary(settings.celery_result_backend, settings.results_primary),
            **(
                {"sentinel_kwargs": sentinel_options(results, _sentinel_password(settings))} if results.sentinel else {}
            ),
        },
        "redis_socket_connect_timeout": 2,
        "redis_socket_timeout": 5,
        "redis_retry_on_timeout": True,
        "redis_socket_keepalive": True,
    }


def durable_options(settings: Settings) -> Options:
    """Translate the settings into those of celery-durable."""
    values = (value for _, value in settings if isinstance(value, SecretStr))
    return Options(
        broker_url=settings.celery_broker_url.get_secret_value(),
        result_url=settings.celery_result_backend.get_secret_value(),
        broker_primary=settings.broker_primary,
        results_primary=settings.results_primary,
        sentinel_password=_sentinel_password(settings),
        signing_keys=tuple(settings.signing_keys),
        control_keys=tuple(settings.control_keys),
        message_limit=settings.message_limit,
        queues=tuple(settings.all_queues),
        client_profile=settings.celery_client_profile,
        secrets=tuple(value.get_secret_value() for value in values),
        json_logs=True,
        log_level=settings.log_level,
        watchdog_seconds=settings.worker_watchdog_seconds,
        heartbeat_file=settings.worker_heartbeat_file,
        workers_expected=settings.workers_expected,
        replicas_wanted=settings.broker_replicas_wanted,
        unreplicated=settings.broker_unreplicated,
        queue_max_length=settings.queue_max_length,
        broker_max_memory_share=settings.broker_max_memory_share,
        reject_without_workers_seconds=settings.reject_without_workers_seconds,
    )


def _sentinel_password(settings: Settings) -> str | None:
    return settings.sentinel_password.get_secret_value() if settings.sentinel_password else None


def _tls_options(url: SecretStr) -> dict[str, Any] | None:
    """Repeat what the URL says: Flower does not read it there, and Celery wants to be told to verify."""
    address = _address(url)
    return {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": address.ca_file} if address.tls else None


def _primary(url: SecretStr, name: str) -> dict[str, str]:
    return {"master_name": name} if _address(url).sentinel else {}


def _address(url: SecretStr) -> RedisAddress:
    return RedisAddress.parse(url.get_secret_value())
