"""Its tasks."""

import os
from pathlib import Path

from celery import shared_task


@shared_task
def sell(article: str) -> str:
    """Write down what was sold."""
    with Path(os.environ["LEDGER"]).open("a") as ledger:
        print("end", article, file=ledger, flush=True)
    return article
