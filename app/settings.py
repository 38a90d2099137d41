"""Settings of worker and API: one typed class, read once per process.

Sources, the first that has a value wins: environment, ``.env`` in the working directory, secrets directory.
"""

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import from_json
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from celery_durable.address import RedisAddress
from celery_durable.queue_names import DEFAULT_QUEUE, RULE, is_queue_name, route_queue

ENV_FILE = ".env"
# Length at which a key of the API cannot be guessed.
MIN_KEY_LENGTH = 16
MIN_KEY_VARIETY = 8
# Characters; 64 hexadecimal ones hold the 256 bits that HMAC-SHA256 can use.
SHORTEST_SIGNING_KEY = 32
# Growth of a byte of a request's body in its queue entry: 6 in JSON, which escapes DEL, and base64's third more.
MESSAGE_GROWTH = 8
# Bytes for everything else in an entry: Celery's headers hold two cut representations of the arguments, 1 KiB each.
MESSAGE_HEADERS = 64 * 1024


def _check_redis_url(url: SecretStr) -> SecretStr:
    RedisAddress.parse(url.get_secret_value())
    return url


def split_keys(value: SecretStr) -> list[str]:
    """Return the single keys of a secret that may hold several, so that they can be rotated."""
    return value.get_secret_value().replace(",", " ").split()


def _split(value: object) -> object:
    return value.replace(",", " ").split() if isinstance(value, str) else value


def _parse_json(value: object) -> object:
    return from_json(value) if isinstance(value, str) else value


def _parse_routes(value: object) -> object:
    routes = _parse_json(value)
    return {task: route_queue(route) for task, route in routes.items()} if isinstance(routes, dict) else routes


RedisUrl = Annotated[SecretStr, AfterValidator(_check_redis_url)]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error", "critical"],
    BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
]
# So many requests per client in each window of that length.
RateLimit = Annotated[str, Field(pattern=r"^([1-9]\d*/(second|minute|hour)|unlimited)$")]


class Settings(BaseSettings):
    """Everything that can be configured; a field's variable is its name in upper case.

    URLs count as secrets because they carry passwords.
    """

    model_config = SettingsConfigDict(
        env_file=ENV_FILE, env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    redis_url: RedisUrl = SecretStr("redis://localhost:6379")
    celery_broker_url: RedisUrl = SecretStr("redis://localhost:6379/0")
    celery_result_backend: RedisUrl = SecretStr("redis://localhost:6379/1")

    # Where a URL above names sentinels: the primary's name, and the sentinels' own password.
    broker_primary: str = "broker"
    results_primary: str = "main"
    sentinel_password: SecretStr | None = None
    # Replicas that must confirm a task before the API accepts it, and the response when they have not in
    # time: 503, although it may run, or 202 with a mark.
    broker_replicas_wanted: Annotated[int, Field(ge=0)] = 0
    broker_unreplicated: Literal["refuse", "mark"] = "refuse"

    groq_api_key: SecretStr | None = None
    gemini_api_key: SecretStr | None = None
    supabase_url: str | None = None
    supabase_key: SecretStr | None = None
    backend_api_key: SecretStr | None = None  # one key or several, separated by commas or white space
    metrics_api_key: SecretStr | None = None  # the same, good for /metrics and /status/alerts alone
    environment: str = "development"
    # Of task messages and of commands to workers. Two while one replaces the other: the first signs, both verify.
    task_signing_key: SecretStr | None = None
    control_signing_key: SecretStr | None = None

    task_soft_time_limit: PositiveInt = 55  # seconds
    task_time_limit: PositiveInt = 60  # seconds
    result_expires: PositiveInt = 3600  # seconds
    task_default_rate_limit: Annotated[str, Field(pattern=r"^\d+(\.\d+)?(/[smh])?$")] | None = None
    # Task name, or Celery's pattern with "*" -> queue name.
    task_routes: Annotated[dict[str, str], NoDecode, BeforeValidator(_parse_routes)] = {}
    # Queues that workers take from besides those of the routes, so that they are counted and bounded like them.
    queues: Annotated[list[str], NoDecode, BeforeValidator(_split)] = []
    worker_prefetch_multiplier: PositiveInt = 1
    worker_max_tasks_per_child: PositiveInt = 1000
    worker_concurrency: PositiveInt | None = None  # unset: Celery takes the number of CPUs
    workers_expected: Annotated[int, Field(ge=0)] = 0  # of all hosts and pools, to compare with those that are there
    # Seconds without a report of any worker after which the API rejects tasks, if workers are expected; 0: never.
    reject_without_workers_seconds: Annotated[int, Field(ge=0)] = 900
    worker_watchdog_seconds: PositiveInt | None = None  # unset: no watchdog, or systemd's
    worker_heartbeat_file: Path | None = None  # touched while the worker lives, for celery_durable/probe.py

    # How long `.delay()` takes while Redis is down or hung: of a worker as long as Celery tries, some 16 s; in a web
    # process 1 s at most.
    celery_client_profile: Literal["worker", "web"] = "worker"

    drain_file: Path | None = None  # while it exists, the API makes balancers drain it
    log_level: LogLevel = "info"
    api_docs: bool = True  # /docs and /openapi.json
    # Per API process. A process answers about 2,000 requests/s: no client takes more than half of that from the others.
    rate_limit: RateLimit = "1000/second"  # requests of one key
    failed_login_limit: RateLimit = "30/minute"  # requests without a valid key from one address
    max_body_bytes: PositiveInt = 256 * 1024
    max_message_bytes: PositiveInt | None = None  # unset: what the largest body can grow to
    queue_max_length: PositiveInt = 10_000  # messages that may wait in a queue before the API rejects more
    broker_max_memory_share: Annotated[float, Field(gt=0, le=1)] = 0.8  # of the broker's maxmemory

    @model_validator(mode="before")
    @classmethod
    def _empty_is_unset(cls, values: dict[str, Any]) -> dict[str, Any]:
        # env_ignore_empty covers environment and .env; an empty secret file arrives here.
        return {name: value for name, value in values.items() if value != ""}

    @field_validator("task_routes", "queues")
    @classmethod
    def _check_queue_names(cls, value: dict[str, str] | list[str]) -> dict[str, str] | list[str]:
        names = value.values() if isinstance(value, dict) else value
        if wrong := [name for name in names if not is_queue_name(name)]:
            raise ValueError(f"the queue {wrong[0]!r} {RULE}")
        return value

    @field_validator("task_signing_key", "control_signing_key")
    @classmethod
    def _check_signing_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value:
            keys = split_keys(value)
            if not 1 <= len(keys) <= 2 or any(len(key) < SHORTEST_SIGNING_KEY for key in keys):
                raise ValueError(
                    f"must be one key of at least {SHORTEST_SIGNING_KEY} characters, or a new and an old one "
                    "separated by a comma or white space"
                )
        return value

    @field_validator("backend_api_key", "metrics_api_key")
    @classmethod
    def _check_api_keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not (keys := split_keys(value)):
            raise ValueError("must hold at least one key")
        if value and not all(_is_strong(key) for key in keys):
            raise ValueError(
                f"each key must have at least {MIN_KEY_LENGTH} visible ASCII characters, "
                f"{MIN_KEY_VARIETY} of them different"
            )
        return value

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if self.task_soft_time_limit >= self.task_time_limit:
            raise ValueError(
                f"TASK_SOFT_TIME_LIMIT={self.task_soft_time_limit} must be less than "
                f"TASK_TIME_LIMIT={self.task_time_limit}"
            )
        if self.message_limit < (least := self._largest_message):
            raise ValueError(
                f"MAX_MESSAGE_BYTES={self.max_message_bytes} must be at least {least}: so large can a request of "
                f"MAX_BODY_BYTES={self.max_body_bytes} become in the queue"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - replaced: its directory is fixed
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the secrets directory, known only at run time, behind environment and ``.env``."""
        secrets = SecretsSettingsSource(settings_cls, secrets_dir=_secrets_directory())
        return init_settings, env_settings, dotenv_settings, secrets

    @property
    def api_keys(self) -> list[str]:
        """The keys of which a client must send one; none: everybody may use the API."""
        return split_keys(self.backend_api_key) if self.backend_api_key else []

    @property
    def all_queues(self) -> list[str]:
        """Every queue that somebody may send tasks to or take them from."""
        return sorted({DEFAULT_QUEUE, *self.task_routes.values(), *self.queues})

    @property
    def metrics_keys(self) -> list[str]:
        """Further keys, which read metrics and post alerts, and allow no other request."""
        return split_keys(self.metrics_api_key) if self.metrics_api_key else []

    @property
    def broker_database(self) -> int:
        """Number of the Redis database that holds the queues (0 when the URL names none)."""
        return RedisAddress.parse(self.celery_broker_url.get_secret_value()).database

    @property
    def signing_keys(self) -> list[bytes]:
        """The keys of task messages: the first signs, each verifies; none where nothing is signed."""
        return [key.encode() for key in split_keys(self.task_signing_key)] if self.task_signing_key else []

    @property
    def control_keys(self) -> list[bytes]:
        """The keys of commands to workers, likewise."""
        return [key.encode() for key in split_keys(self.control_signing_key)] if self.control_signing_key else []

    @property
    def message_limit(self) -> int:
        """Bytes of the largest queue entry that a worker takes."""
        return self.max_message_bytes or self._largest_message

    @property
    def _largest_message(self) -> int:
        return self.max_body_bytes * MESSAGE_GROWTH + MESSAGE_HEADERS


def _is_strong(key: str) -> bool:
    return re.fullmatch(rf"[!-~]{{{MIN_KEY_LENGTH},}}", key) is not None and len(set(key)) >= MIN_KEY_VARIETY


def _secrets_directory() -> Path | None:
    """Return the directory of secret files, by the same order as all settings: environment before ``.env``.

    A unit's credentials (CREDENTIALS_DIRECTORY, set by systemd) thus win over the directories that ``.env`` names for
    commands by hand: the first that the user may read.
    """
    for name, chosen in (
        ("SECRETS_DIRECTORY", os.environ.get("SECRETS_DIRECTORY")),
        ("CREDENTIALS_DIRECTORY", os.environ.get("CREDENTIALS_DIRECTORY")),
        ("SECRETS_DIRECTORY", dotenv_values(ENV_FILE).get("SECRETS_DIRECTORY")),
    ):
        if not chosen:
            continue
        for place in map(Path, chosen.split(":")):
            if place.is_dir() and os.access(place, os.R_OK | os.X_OK):
                return place
        raise SettingsError(f"{name}={chosen!r} is refused: it must name a directory that this user can read.")
    return None


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in (field.annotation, *get_args(field.annotation))


def _sentences(error: ValidationError) -> str:
    """Return for each wrong variable its name, its value unless that is a secret, and the rule."""
    lines = []
    for problem in error.errors():
        rule = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else problem["msg"]
        if not problem["loc"]:  # a rule about several variables names them itself
            lines.append(f"{rule}.")
            continue
        name = str(problem["loc"][0])
        value = "" if _is_secret(Settings.model_fields[name]) else f"={problem['input']!r}"
        lines.append(f"{name.upper()}{value} is refused: {rule}.")
    return "\n".join(lines)


@lru_cache
def get_settings() -> Settings:
    """Return the process's settings.

    Raises:
        SystemExit: a value is wrong; the message is one sentence per variable and holds no secret.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise SystemExit(_sentences(error)) from None
    except SettingsError as error:
        raise SystemExit(str(error)) from None
