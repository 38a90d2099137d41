"""The database."""

from datetime import UTC, datetime

from sqlalchemy import JSON, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from app.settings import settings

engine = create_engine(
    settings.database_url, connect_args={"timeout": 30} if settings.database_url.startswith("sqlite") else {}
)
Session = sessionmaker(engine)


class Base(DeclarativeBase):
    """All tables."""


class Order(Base):
    """What a customer wants: new, pricing, done or failed."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    articles: Mapped[list[str]] = mapped_column(JSON)
    status: Mapped[str] = mapped_column(default="new")
    total: Mapped[int | None]
    created: Mapped[datetime] = mapped_column(default=lambda: datetime.now(UTC))
