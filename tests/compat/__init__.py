"""Celery's own integration suite, run on our worker, transport and Redis rules: ``make compat``."""
