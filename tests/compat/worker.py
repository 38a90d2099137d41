"""Our worker with the tasks of Celery's suite: ``celery -A tests.compat.worker worker``."""

import celery.contrib.testing.tasks  # noqa: F401 - the suite's ping
from t.integration.tasks import ClassBasedAutoRetryTask

from app.agents.worker import celery_app

celery_app.register_task(ClassBasedAutoRetryTask)
