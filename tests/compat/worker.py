"""Our worker with the tasks of Celery's suite: ``celery -A tests.compat.worker worker``."""

import celery.contrib.testing.tasks  # noqa: F401 - the suite's ping
from t.integration.tasks import ClassBasedAutoRetryTask

from app.agents.worker import celery_app

# What Celery's applications for tests have set.
celery_app.conf.update(worker_log_color=False, broker_heartbeat=0)
celery_app.register_task(ClassBasedAutoRetryTask)
