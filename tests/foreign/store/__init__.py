"""Somebody else's project of Django's, laid out as its documentation and Celery's say."""

from store.celery import app

__all__ = ["app"]
