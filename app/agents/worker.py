"""The Celery application object; ``celery -A app.agents.worker ...`` starts here."""

from celery import Celery

from app.agents import command_line, kombu_workaround, lifecycle, systemd, task_logs
from app.agents.config import DEFAULT_MAX_RETRIES, celery_config
from app.settings import get_settings

celery_app = Celery("typesafe_agent")
celery_app.conf.update(celery_config(get_settings()))
celery_app.Task.max_retries = DEFAULT_MAX_RETRIES

kombu_workaround.apply()
task_logs.connect()
lifecycle.connect()
systemd.install(celery_app)
command_line.prepare()
