"""The Celery application object; ``celery -A app.agents.worker ...`` starts here."""

from celery import Celery
from celery.app.task import Task

import celery_durable
from app.agents.config import DEFAULT_MAX_RETRIES, celery_config, durable_options
from app.settings import get_settings

celery_app = Celery("typesafe_agent")
celery_app.conf.update(celery_config(get_settings()))
# Not of celery_app.Task: tasks with a base class of their own do not come from it.
Task.max_retries = DEFAULT_MAX_RETRIES

celery_durable.install(celery_app, durable_options(get_settings()))
