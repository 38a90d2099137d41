"""The fixtures of the packages' tests: the library's, and the sample's programs."""
# ruff: noqa: F401 - pytest finds them here

from celery_durable.testing import redis_server, start_worker
from tests.conftest import api, bare_environment, lonely_api, stack, stack_env, worker
