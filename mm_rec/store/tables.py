"""The tables of the server's store, and the names of what is in them.

A change here needs a migration: a file in migrations/, which brings stores that there are to the new tables.

A row belongs to the API key that made it, its owner; None is the owner of everything on a server without keys.
"""

from __future__ import annotations

import json
import re
import uuid
from datetime import date
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, Text, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

ID_PATTERN = re.compile(r"[a-z]+_[0-9a-f]{32}")
SESSION_FILE_PATTERN = re.compile(r"[0-9a-f]{32}\.safetensors")


def new_id(kind: str) -> str:
    """An id like resp_0f3c…, which nobody can guess."""
    return f"{kind}_{uuid.uuid4().hex}"


def new_session_file() -> str:
    """A name for the file of a session; a client never names a file."""
    return f"{uuid.uuid4().hex}.safetensors"


class _Json(TypeDecorator[Any]):
    """JSON in a text column: unlike PostgreSQL's jsonb it keeps the order of keys, \\u0000 and lone surrogates."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str:
        return json.dumps(value)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return json.loads(value)


class Base(DeclarativeBase):
    """The base of all tables of the store."""

    type_annotation_map = {int: BigInteger().with_variant(Integer, "sqlite")}  # 64 bits in both


class Schema(Base):
    """One row, 2: an mmrec from before the numbered migrations looks here, and refuses more than 1."""

    __tablename__ = "mmrec_schema"

    version: Mapped[int] = mapped_column(primary_key=True)


class StoreIdentity(Base):
    """One row: the identifier of this store, which a folder of sessions that belongs to it has too."""

    __tablename__ = "mmrec_store"

    id: Mapped[str] = mapped_column(primary_key=True)


class ApiKey(Base):
    """A key, without its text; times are seconds since 1970, limits are None where there is none."""

    __tablename__ = "mmrec_api_keys"

    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    hash: Mapped[str]
    prefix: Mapped[str] = mapped_column(unique=True)  # the beginning of its text, which people may see
    created: Mapped[int]
    expires: Mapped[int | None]
    revoked: Mapped[int | None]
    last_used: Mapped[int | None]
    requests_per_minute: Mapped[int | None]
    tokens_per_day: Mapped[int | None]


class DailyUsage(Base):
    """What one key used on one day (UTC)."""

    __tablename__ = "mmrec_usage"

    key_id: Mapped[str] = mapped_column(primary_key=True)  # "" without keys: no null in a primary key
    day: Mapped[date] = mapped_column(primary_key=True)
    requests: Mapped[int]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.prompt_tokens + self.completion_tokens


class OwnedMixin:
    """Columns of what belongs to a key; `number` rises in the order of creation; `bytes` is what it takes."""

    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    key_id: Mapped[str | None] = mapped_column(ForeignKey("mmrec_api_keys.id"), index=True)
    created: Mapped[int]
    bytes: Mapped[int] = mapped_column(server_default="0")


class SavedSession(OwnedMixin, Base):
    """A conversation's state in a file, and what it is bound to; `length` is in tokens.

    `version` counts its turns. One turn at a time has the lease: `lease_holder` is its id, None where there is none.
    """

    __tablename__ = "mmrec_sessions"

    model: Mapped[str]
    adapter: Mapped[str | None]
    length: Mapped[int]
    file_name: Mapped[str]
    used: Mapped[int]
    version: Mapped[int] = mapped_column(server_default="0")
    lease_holder: Mapped[str | None]
    lease_expires: Mapped[int | None]

    @property
    def name(self) -> str:
        """What requests call its model."""
        return self.model if self.adapter is None else f"{self.model}:{self.adapter}"


class StoredResponse(OwnedMixin, Base):
    """A response as it was given, and the input that was new in it; what came before is in `previous_response_id`."""

    __tablename__ = "mmrec_responses"
    __table_args__ = (Index("ix_mmrec_responses_kept", "key_id", "number", "bytes"),)

    previous_response_id: Mapped[str | None]
    model: Mapped[str]
    input_items: Mapped[list[Any]] = mapped_column(_Json)
    response: Mapped[dict[str, Any]] = mapped_column(_Json)
