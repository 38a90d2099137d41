"""Flower's configuration file (``--conf``); every variable here that is named like an option becomes that option.

``celery -A app.agents.worker flower`` uses it without being told.
"""

from app.agents import flower_gate
from app.settings import get_settings

settings = get_settings()
if credentials := settings.flower_basic_auth:
    basic_auth = credentials.get_secret_value().split()
read_only = settings.flower_read_only

flower_gate.install()
