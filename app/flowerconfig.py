"""Flower's configuration file (``--conf``); every variable here that is named like an option becomes that option.

``celery -A app.agents.worker flower`` uses it without being told.
"""

from app.agents import flower_gate
from app.settings import get_settings

if credentials := get_settings().flower_basic_auth:
    basic_auth = [credentials.get_secret_value()]

flower_gate.install()
