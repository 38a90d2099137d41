"""Configuration, settings, the example task's logic and the log format; no server is needed."""

import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from celery import Celery
from celery.concurrency.prefork import TaskPool
from celery.exceptions import Retry
from hypothesis.strategies import integers, text
from kombu.transport.redis import Channel
from pydantic import SecretStr
from pydantic_settings import SettingsError

from app.agents.config import celery_config, durable_options
from app.agents.tasks import example_task
from app.agents.tasks.example_task import example_agent_task
from app.agents.worker import celery_app
from app.logs import JsonFormatter, log_config
from app.settings import Settings, get_settings
from celery_durable.defaults import apply
from celery_durable.logs import LAST_FRAMES, OWN_FRAMES
from celery_durable.masking import mask
from celery_durable.metrics import size_of
from tests.support import REPOSITORY

# LineMax of journald.conf(5).
JOURNALD_LINE = 48 * 1024


@pytest.fixture
def defaults(bare_environment: pytest.MonkeyPatch) -> Any:  # noqa: ARG001
    """Return Celery's configuration when nothing is set, with what celery-durable adds."""
    app = Celery()
    app.conf.update(celery_config(Settings()))
    apply(app, replace(durable_options(Settings()), broker_url=app.conf.broker_url, result_url=app.conf.result_backend))
    return app.conf


class TestCeleryConfiguration:
    """The guide's numbers and what task safety adds."""

    def test_name(self) -> None:
        assert celery_app.main == "typesafe_agent"

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("broker_url", "redis://localhost:6379/0"),
            ("result_backend", "redis://localhost:6379/1"),
            ("accept_content", ["json"]),
            ("task_serializer", "json"),
            ("result_serializer", "json"),
            ("enable_utc", True),
            ("timezone", "UTC"),
            ("task_track_started", True),
            ("task_soft_time_limit", 55),
            ("task_time_limit", 60),
            ("task_acks_late", True),
            ("task_default_queue", "celery"),
            ("task_default_max_retries", 3),
            ("worker_prefetch_multiplier", 1),
            ("worker_max_tasks_per_child", 1000),
            ("worker_soft_shutdown_timeout", 10),
            ("broker_connection_retry_on_startup", True),
            ("result_expires", 3600),
            ("result_extended", True),
            ("result_backend_always_retry", True),
        ],
    )
    def test_defaults(self, defaults: dict[str, Any], name: str, expected: object) -> None:
        assert defaults[name] == expected

    def test_application_has_the_configuration(self) -> None:
        for name, value in celery_config(get_settings()).items():
            assert getattr(celery_app.conf, name) == value

    def test_retries_apply_to_tasks_without_their_own(self) -> None:
        assert celery_app.Task.max_retries == 3

    def test_task_killed_with_its_child_is_not_redelivered_for_ever(self) -> None:
        assert not celery_app.conf.task_reject_on_worker_lost

    def test_transport_knows_every_option(self, defaults: dict[str, Any]) -> None:
        assert set(defaults["broker_transport_options"]) <= set(Channel.from_transport_options)

    def test_limits_and_routes_follow_the_settings(self, bare_environment: pytest.MonkeyPatch) -> None:
        bare_environment.setenv("TASK_TIME_LIMIT", "100")
        bare_environment.setenv("TASK_ROUTES", '{"a.b": "slow"}')
        config = celery_config(Settings())
        assert config["task_time_limit"] == 100
        assert config["task_routes"] == {"a.b": {"queue": "slow"}}


class TestSettings:
    """Where values come from, and what a wrong one says."""

    def test_environment_before_env_file_before_secrets(
        self, bare_environment: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        secrets = tmp_path / "secrets"
        secrets.mkdir()
        for name in ("GROQ_API_KEY", "GEMINI_API_KEY", "SUPABASE_KEY"):
            (secrets / name).write_text("from file\n")
        (tmp_path / ".env").write_text(
            f"SECRETS_DIRECTORY={secrets}\nGEMINI_API_KEY=from env file\nSUPABASE_KEY=from env file\n"
        )
        bare_environment.setenv("SUPABASE_KEY", "from environment")
        settings = Settings()
        found = [settings.groq_api_key, settings.gemini_api_key, settings.supabase_key]
        assert [key and key.get_secret_value() for key in found] == ["from file", "from env file", "from environment"]

    def test_systemd_credentials(self, bare_environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "CELERY_BROKER_URL").write_text("redis://:pw@broker:6380/5")
        bare_environment.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        settings = Settings()
        assert settings.celery_broker_url.get_secret_value() == "redis://:pw@broker:6380/5"
        assert settings.broker_database == 5

    def test_a_units_credentials_win_over_the_directory_for_operators(
        self, bare_environment: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for directory in ("operators", "credentials"):
            (tmp_path / directory).mkdir()
            (tmp_path / directory / "GROQ_API_KEY").write_text(directory)
        (tmp_path / ".env").write_text(f"SECRETS_DIRECTORY={tmp_path / 'operators'}\n")
        assert Settings().groq_api_key == SecretStr("operators")
        bare_environment.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
        assert Settings().groq_api_key == SecretStr("credentials")

    def test_of_several_directories_the_first_that_can_be_read_counts(
        self, bare_environment: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for directory in ("operators", "workers"):
            (tmp_path / directory).mkdir()
            (tmp_path / directory / "GROQ_API_KEY").write_text(directory)
        bare_environment.setenv("SECRETS_DIRECTORY", f"{tmp_path}/none:{tmp_path}/operators:{tmp_path}/workers")
        assert Settings().groq_api_key == SecretStr("operators")
        closed = {str(tmp_path / "operators")}
        bare_environment.setattr(os, "access", lambda place, _: str(place) not in closed)
        assert Settings().groq_api_key == SecretStr("workers")
        closed.add(str(tmp_path / "workers"))
        with pytest.raises(SettingsError, match="must name a directory that this user can read"):
            Settings()

    def test_empty_counts_as_unset(self, bare_environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / ".env").write_text("GROQ_API_KEY=\nWORKER_CONCURRENCY=\n")
        (tmp_path / "SUPABASE_KEY").write_text("\n")
        bare_environment.setenv("SECRETS_DIRECTORY", str(tmp_path))
        settings = Settings()
        assert (settings.groq_api_key, settings.worker_concurrency, settings.supabase_key) == (None, None, None)

    def test_example_file_shows_every_variable(self) -> None:
        example = (REPOSITORY / ".env.example").read_text()
        assert [name for name in Settings.model_fields if f"{name.upper()}=" not in example] == []

    def test_passwords_do_not_show(self, bare_environment: pytest.MonkeyPatch) -> None:
        bare_environment.setenv("CELERY_BROKER_URL", "redis://:hidden@localhost/0")
        assert "hidden" not in repr(Settings())

    @pytest.mark.parametrize(
        ("name", "value", "sentence"),
        [
            ("TASK_TIME_LIMIT", "soon", "TASK_TIME_LIMIT='soon' is refused: Input should be a valid integer"),
            ("TASK_TIME_LIMIT", "55", "TASK_SOFT_TIME_LIMIT=55 must be less than TASK_TIME_LIMIT=55."),
            ("WORKER_CONCURRENCY", "0", "WORKER_CONCURRENCY='0' is refused: Input should be greater than 0."),
            ("LOG_LEVEL", "loud", "LOG_LEVEL='loud' is refused: Input should be 'debug'"),
            ("TASK_DEFAULT_RATE_LIMIT", "fast", "TASK_DEFAULT_RATE_LIMIT='fast' is refused: String should match"),
            ("TASK_ROUTES", "{", "TASK_ROUTES='{' is refused: "),
            ("CELERY_BROKER_URL", "http://:hidden@host", "CELERY_BROKER_URL is refused: must look like redis://"),
            ("CELERY_BROKER_URL", "redis://:hidden@host/a", "CELERY_BROKER_URL is refused: must look like redis://"),
            ("CELERY_BROKER_URL", "sentinel://:hidden@a/0;sentinel://b/0", "CELERY_BROKER_URL is refused: must look"),
            ("CELERY_BROKER_URL", "redis://:hidden@a/0;redis://:hidden@b/0", "CELERY_BROKER_URL is refused: must look"),
            ("BROKER_UNREPLICATED", "drop", "BROKER_UNREPLICATED='drop' is refused: Input should be 'refuse' or"),
            ("REDIS_URL", "rediss://host?ssl_cert_reqs=none", "REDIS_URL is refused: must look like redis://"),
            ("REDIS_URL", "rediss://host?ssl_check_hostname=False", "REDIS_URL is refused: must look like redis://"),
            ("REDIS_URL", "redis://host?ssl_ca_certs=/ca", "REDIS_URL is refused: must look like redis://"),
            ("SECRETS_DIRECTORY", "/none", "SECRETS_DIRECTORY='/none' is refused: it must name a directory"),
        ],
    )
    @pytest.mark.usefixtures("fresh_settings")
    def test_wrong_value_ends_in_one_sentence(
        self, bare_environment: pytest.MonkeyPatch, name: str, value: str, sentence: str
    ) -> None:
        bare_environment.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            get_settings()
        assert str(end.value).startswith(sentence)
        assert "hidden" not in str(end.value)
        assert str(end.value).count("\n") == 0

    @pytest.fixture
    def fresh_settings(self) -> Any:
        """Read the settings anew now, and again after the test."""
        get_settings.cache_clear()
        yield
        get_settings.cache_clear()

    def test_programs_end_with_the_sentence(self, bare_environment: pytest.MonkeyPatch) -> None:
        bare_environment.setenv("TASK_TIME_LIMIT", "soon")
        command = [sys.executable, "-m", "celery", "-A", "app.agents.worker", "worker"]
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert ended.returncode == 1
        assert ended.stderr.startswith("TASK_TIME_LIMIT='soon' is refused")
        assert "Traceback" not in ended.stderr


class TestExampleTask:
    """The task's own logic, run in this process; only waiting, chance and Redis are replaced."""

    @pytest.fixture(autouse=True)
    def progress(self, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        """Collect progress reports and do not wait."""
        reports: list[dict[str, Any]] = []
        monkeypatch.setattr(example_agent_task, "update_state", lambda **report: reports.append(report))
        monkeypatch.setattr(time, "sleep", lambda _: None)
        return reports

    def test_result(self) -> None:
        assert example_agent_task.run("id", {"key": "value"}) == {
            "task_id": "id",
            "status": "completed",
            "result": "Success",
            "attempts": 1,
            "data": {"key": "value"},
        }

    def test_progress(self, progress: list[dict[str, Any]]) -> None:
        example_agent_task.run("id", {})
        assert [report["state"] for report in progress] == ["PROGRESS"] * len(example_task.STEPS)
        assert progress[0]["meta"] == {"current": 1, "total": 4, "status": "Preparing"}
        assert progress[-1]["meta"]["current"] == progress[-1]["meta"]["total"]

    def test_takes_about_two_seconds(self) -> None:
        assert len(example_task.STEPS) * example_task.STEP_SECONDS == 2

    def test_does_not_fail_unless_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(random, "random", lambda: 0.0)
        assert example_agent_task.run("id", {"simulate_failure": False})["status"] == "completed"

    @pytest.mark.parametrize(("retries", "countdown"), [(0, 2), (1, 4), (2, 8)])
    def test_backs_off(self, monkeypatch: pytest.MonkeyPatch, retries: int, countdown: int) -> None:
        monkeypatch.setattr(random, "random", lambda: 0.0)
        asked: dict[str, Any] = {}

        def retry(**options: Any) -> Retry:
            asked.update(options)
            return Retry()

        monkeypatch.setattr(example_agent_task, "retry", retry)
        example_agent_task.push_request(retries=retries)
        try:
            with pytest.raises(Retry):
                example_agent_task.run("id", {"simulate_failure": True})
        finally:
            example_agent_task.pop_request()
        assert asked["countdown"] == countdown
        assert isinstance(asked["exc"], example_task.SimulatedFailureError)

    def test_options(self) -> None:
        assert example_agent_task.name == "app.agents.tasks.example_task.example_agent_task"
        assert (example_agent_task.max_retries, example_agent_task.default_retry_delay) == (3, 2)


class TestLogs:
    """The fields of a line; that all programs write such lines is tested where they run."""

    @staticmethod
    def _line(**extra: Any) -> dict[str, Any]:
        record = logging.getLogger("test").makeRecord(
            "test", logging.INFO, "module.py", 7, "Hello %s", ("you",), None, "function", extra
        )
        line: dict[str, Any] = json.loads(JsonFormatter("api").format(record))
        return line

    def test_fields(self) -> None:
        line = self._line()
        assert line.pop("timestamp").endswith("+00:00")
        assert line == {
            "level": "INFO",
            "service": "api",
            "message": "Hello you",
            "module": "module",
            "function": "function",
            "line": 7,
        }

    def test_task_arguments_are_dropped(self) -> None:
        line = self._line(data={"id": "1", "name": "a.b", "args": "secret", "kwargs": "secret"})
        assert (line["task_id"], line["task_name"]) == ("1", "a.b")
        assert "secret" not in json.dumps(line)

    def test_exception_is_one_field(self) -> None:
        error = ValueError("broken\nin two lines")
        record = logging.LogRecord("test", logging.ERROR, "module.py", 1, "Oh", None, (ValueError, error, None))
        text = JsonFormatter("api").format(record)
        assert "\n" not in text
        assert "ValueError: broken" in json.loads(text)["exception"]

    @staticmethod
    def _exception(run: Callable[[], object]) -> str:
        with pytest.raises(Exception) as raised:  # noqa: PT011 - any
            run()
        error = (raised.type, raised.value, raised.tb)
        record = logging.LogRecord("test", logging.ERROR, "module.py", 1, "Oh", None, error)
        line = JsonFormatter("api").format(record)
        assert len(line.encode()) < JOURNALD_LINE
        exception: str = json.loads(line)["exception"]
        return exception

    def test_the_chain_keeps_type_path_and_message_of_each_cause(self, tmp_path: Path) -> None:
        def fail() -> None:
            try:
                (tmp_path / "away").read_text()
            except OSError as error:
                raise ExceptionGroup("two at once", [RuntimeError("wrapped"), KeyError("k")]) from error

        told = self._exception(fail)
        assert f"FileNotFoundError: [Errno 2] No such file or directory: '{tmp_path}/away'" in told
        assert "RuntimeError: wrapped" in told
        assert "KeyError: 'k'" in told
        assert "in fail" in told

    def test_of_a_long_way_there_the_last_frames_and_ours_are_kept(self) -> None:
        def deep(left: int) -> object:
            return deep(left - 1) if left else json.loads("{")

        told = self._exception(lambda: deep(300))
        assert told.count("\n  File ") <= LAST_FRAMES + OWN_FRAMES
        assert "json/decoder.py" in told
        ours = self._exception(lambda: mask(7))  # type: ignore[arg-type]
        assert "celery_durable/masking.py" in ours

    @hypothesis.given(message=text(max_size=60), times=integers(1, 4000), depth=integers(0, 40))
    @hypothesis.settings(max_examples=20, deadline=None)
    def test_no_exception_makes_a_line_that_journald_cuts(self, message: str, times: int, depth: int) -> None:
        def fail(left: int) -> None:
            try:
                int(message * times + "x")
            except ValueError:
                if left:
                    fail(left - 1)
                raise OSError(13, message * times, "/the/path") from None

        self._exception(lambda: fail(depth))

    def test_an_error_without_an_exception_is_a_line(self) -> None:
        record = logging.LogRecord("test", logging.ERROR, "module.py", 1, "Oh", None, (None, None, None))
        assert json.loads(JsonFormatter("api").format(record))["message"] == "Oh"

    def test_file_for_uvicorn_is_the_same(self) -> None:
        assert json.loads((REPOSITORY / "app/log_config.json").read_text()) == log_config("api", "info")


def test_a_pool_that_does_not_run_has_no_size() -> None:
    pool = TaskPool(2)
    assert size_of(pool) == size_of(None) == 0
    pool.on_start()
    assert size_of(pool) == 2
    # What Celery does at the end of a worker; the watchdog's thread died of it.
    pool.on_terminate()
    assert size_of(pool) == 0
