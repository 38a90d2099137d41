"""The deployed application: a FastAPI front, Celery workers and their shared configuration."""
