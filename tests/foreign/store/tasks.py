"""Its tasks."""

import os
from pathlib import Path

from asgiref.sync import sync_to_async
from celery import shared_task
from django.db import connection
from django_celery_beat.models import PeriodicTask


@shared_task
def sell(article: str) -> str:
    """Write down what was sold."""
    with Path(os.environ["LEDGER"]).open("a") as ledger:
        print("end", article, file=ledger, flush=True)
    return article


@shared_task
async def count() -> tuple[int, bool]:
    """Count the schedules with Django's asynchronous interface; return, too, whether its connection is a new one."""
    used = await sync_to_async(lambda: connection.connection is not None)()
    return await PeriodicTask.objects.acount(), not used


@shared_task
def count_in_turn() -> tuple[int, bool]:
    """Do the same without it."""
    used = connection.connection is not None
    return PeriodicTask.objects.count(), not used
