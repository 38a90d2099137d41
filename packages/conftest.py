"""The servers of tests/conftest.py, for the packages' tests."""

from tests.conftest import api, bare_environment, lonely_api, redis_server, stack, stack_env, worker

__all__ = ["api", "bare_environment", "lonely_api", "redis_server", "stack", "stack_env", "worker"]
