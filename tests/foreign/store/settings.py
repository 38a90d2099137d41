"""Its settings."""

import os

SECRET_KEY = os.environ["DJANGO_SECRET_KEY"]
USE_TZ = True
INSTALLED_APPS = ["django_celery_beat", "store"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["DATABASE"]}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "store.urls"
ALLOWED_HOSTS = ["*"]
CELERY_BROKER_URL = os.environ["REDIS_URL"]
CELERY_RESULT_BACKEND = os.environ["RESULTS_URL"]
CELERY_TASK_DEFAULT_QUEUE = "store"
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
