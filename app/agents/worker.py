"""The Celery application object; ``celery -A app.agents.worker ...`` starts here."""

from celery import Celery
from celery.app.task import Task

from app.agents import command_line, deliveries, lifecycle, results, systemd, task_logs, transport
from app.agents.config import DEFAULT_MAX_RETRIES, celery_config
from app.settings import get_settings

celery_app = Celery("typesafe_agent", control="app.agents.control:Control")
celery_app.conf.update(celery_config(get_settings()))
# Not of celery_app.Task: tasks with a base class of their own do not come from it.
Task.max_retries = DEFAULT_MAX_RETRIES
Task.Request = "app.agents.request:Request"

transport.install()
results.install(celery_app)
deliveries.install(celery_app)
task_logs.connect()
lifecycle.connect()
systemd.install(celery_app)
command_line.prepare()
