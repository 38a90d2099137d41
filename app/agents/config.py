"""Celery's configuration, the same for worker, API and every command."""

from typing import Any

from pydantic import SecretStr

from app.settings import Settings
from celery_durable import queue_names
from celery_durable.options import Options

TASK_MODULES = ("app.agents.tasks.example_task", "app.agents.tasks.agent_run")
DEFAULT_QUEUE = queue_names.DEFAULT_QUEUE
DEFAULT_MAX_RETRIES = 3


def celery_config(settings: Settings) -> dict[str, Any]:
    """Translate the settings into Celery's own; all durations are seconds. celery-durable adds what it needs."""
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
        "task_soft_time_limit": settings.task_soft_time_limit,
        "task_time_limit": settings.task_time_limit,
        "task_default_rate_limit": settings.task_default_rate_limit,
        # The health gate's probe (durable-admin) is no work of the application's.
        "task_annotations": {"celery.accumulate": {"rate_limit": "0"}},
        "task_default_max_retries": DEFAULT_MAX_RETRIES,  # no setting of Celery's: app.agents.worker applies it
        "result_expires": settings.result_expires,
        # Worker
        "worker_concurrency": settings.worker_concurrency,
        "worker_prefetch_multiplier": settings.worker_prefetch_multiplier,
        "worker_max_tasks_per_child": settings.worker_max_tasks_per_child,
        "worker_hijack_root_logger": False,
    }


def durable_options(settings: Settings) -> Options:
    """Translate the settings into those of celery-durable."""
    values = (value for _, value in settings if isinstance(value, SecretStr))
    return Options(
        broker_url=settings.celery_broker_url.get_secret_value(),
        result_url=settings.celery_result_backend.get_secret_value(),
        broker_primary=settings.broker_primary,
        results_primary=settings.results_primary,
        sentinel_password=settings.sentinel_password.get_secret_value() if settings.sentinel_password else None,
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
