"""Settings of worker, API and Flower: one typed class, read once per process.

Sources, the first that has a value wins: environment, ``.env`` in the working directory, secrets directory.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

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

ENV_FILE = ".env"


def _check_redis_url(url: SecretStr) -> SecretStr:
    rule = "must look like redis://[user:password@]host[:port][/database number] (or rediss:// for TLS)"
    try:
        parts = urlsplit(url.get_secret_value())
        valid = parts.scheme in {"redis", "rediss"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        valid = False
    else:
        database = parts.path.removeprefix("/")
        valid = valid and (database == "" or database.isdecimal())
    if not valid:
        raise ValueError(rule)
    return url


def _parse_json(value: object) -> object:
    return from_json(value) if isinstance(value, str) else value


RedisUrl = Annotated[SecretStr, AfterValidator(_check_redis_url)]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error", "critical"],
    BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
]


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

    groq_api_key: SecretStr | None = None
    gemini_api_key: SecretStr | None = None
    supabase_url: str | None = None
    supabase_key: SecretStr | None = None
    backend_api_key: SecretStr | None = None
    environment: str = "development"
    flower_basic_auth: SecretStr | None = None  # user:password

    task_soft_time_limit: PositiveInt = 55  # seconds
    task_time_limit: PositiveInt = 60  # seconds
    result_expires: PositiveInt = 3600  # seconds
    task_default_rate_limit: Annotated[str, Field(pattern=r"^\d+(\.\d+)?(/[smh])?$")] | None = None
    task_routes: Annotated[dict[str, str], NoDecode, BeforeValidator(_parse_json)] = {}  # task name -> queue name
    worker_prefetch_multiplier: PositiveInt = 1
    worker_max_tasks_per_child: PositiveInt = 1000
    worker_concurrency: PositiveInt | None = None  # unset: Celery takes the number of CPUs
    worker_watchdog_seconds: PositiveInt | None = None  # unset: no watchdog, or systemd's

    log_level: LogLevel = "info"
    max_body_bytes: PositiveInt = 256 * 1024
    queue_max_length: PositiveInt = 10_000  # messages that may wait in a queue before the API refuses more
    broker_max_memory_share: Annotated[float, Field(gt=0, le=1)] = 0.8  # of the broker's maxmemory

    @model_validator(mode="before")
    @classmethod
    def _empty_is_unset(cls, values: dict[str, Any]) -> dict[str, Any]:
        # env_ignore_empty covers environment and .env; an empty secret file arrives here.
        return {name: value for name, value in values.items() if value != ""}

    @field_validator("flower_basic_auth")
    @classmethod
    def _check_basic_auth(cls, value: SecretStr | None) -> SecretStr | None:
        user, _, password = value.get_secret_value().partition(":") if value else ("-", ":", "-")
        if not user or not password:
            raise ValueError("must be user:password, neither of them empty")
        return value

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if self.task_soft_time_limit >= self.task_time_limit:
            raise ValueError(
                f"TASK_SOFT_TIME_LIMIT={self.task_soft_time_limit} must be less than "
                f"TASK_TIME_LIMIT={self.task_time_limit}"
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
    def broker_database(self) -> int:
        """Number of the Redis database that holds the queues (0 when the URL names none)."""
        return int(urlsplit(self.celery_broker_url.get_secret_value()).path.removeprefix("/") or 0)


def _secrets_directory() -> Path | None:
    """Return the directory of secret files, by the same order as all settings: environment before ``.env``.

    A unit's credentials (CREDENTIALS_DIRECTORY, set by systemd) thus win over the directory that ``.env`` names for
    commands that an operator runs by hand.
    """
    for name, chosen in (
        ("SECRETS_DIRECTORY", os.environ.get("SECRETS_DIRECTORY")),
        ("CREDENTIALS_DIRECTORY", os.environ.get("CREDENTIALS_DIRECTORY")),
        ("SECRETS_DIRECTORY", dotenv_values(ENV_FILE).get("SECRETS_DIRECTORY")),
    ):
        if chosen and not Path(chosen).is_dir():
            raise SettingsError(f"{name}={chosen!r} is refused: it must name a directory that exists.")
        if chosen:
            return Path(chosen)
    return None


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in (field.annotation, *get_args(field.annotation))


def _sentences(error: ValidationError) -> str:
    """Say for each wrong variable its name, its value unless that is a secret, and the rule."""
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
