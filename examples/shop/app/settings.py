"""Settings: from the environment, and from `.env` on a developer's machine."""

from pathlib import Path
from typing import Literal

from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """A name in `.env` that is not here is a mistake."""

    model_config = SettingsConfigDict(env_file=".env", extra="forbid")

    shop_env: Literal["development", "production"] = "development"
    database_url: str
    broker_url: str = "redis://localhost:6379/0"
    cache_url: str = "redis://localhost:6379/1"
    news_url: str = "redis://localhost:6379/1"
    receipt_key: str = ""
    upload_directory: Path = Path("uploads")
    price_seconds: float = 0.1


settings = Settings()
