"""What the server keeps in a database: API keys, usage by day, stored responses, sessions.

SQLite in a file, or PostgreSQL by URL. Every function runs one short transaction and may be called from any thread.
What it returns are plain rows, detached from the database: changing one changes nothing there.

A row belongs to the API key that made it, its owner; None is the owner of everything on a server without keys. Nobody
sees the rows of another owner: to them, these do not exist.

Texts of a request are values of bound parameters, never a part of an SQL statement.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker

from mm_rec.errors import ConfigError, UserError
from mm_rec.store.database import describe, detail, fault, is_sqlite, make_file, open_engine, reason
from mm_rec.store.health import StorageHealth, StoreUnavailableError
from mm_rec.store.migrate import migrate
from mm_rec.store.queries import belongs_to, chain_numbers, has_id, is_free, now, response_chain, valid_id
from mm_rec.store.retention import Retention, count_rows
from mm_rec.store.tables import (
    SESSION_FILE_PATTERN,
    ApiKey,
    DailyUsage,
    OwnedMixin,
    SavedSession,
    StoredResponse,
    StoreIdentity,
    new_id,
)

_Row = TypeVar("_Row", bound=OwnedMixin)


@dataclass(frozen=True, slots=True)
class Page(Generic[_Row]):
    """Some rows, newest first, and whether there are older ones."""

    rows: list[_Row]
    has_more: bool


def today() -> date:
    """The day that usage is counted on, in UTC."""
    return datetime.now(UTC).date()


class Store:
    """The database of a server; raises ConfigError where it cannot be opened or is newer than this program.

    `url` is sqlite:///FILE (made where it is absent) or postgresql://USER:PASSWORD@HOST/DATABASE. A store of an earlier
    version is brought to the newest. Where the database fails later, what is asked raises StoreUnavailableError.
    """

    def __init__(self, url: str, retention: Retention | None = None) -> None:
        self.retention, self.health = retention or Retention(), StorageHealth()
        self._engine = open_engine(url)
        self._sessions = sessionmaker(self._engine, expire_on_commit=False)
        try:
            if is_sqlite(self._engine):
                make_file(self._engine)
            migrate(self._engine)
        except (DBAPIError, OSError) as error:
            self.close()
            raise ConfigError(f"the store {self} cannot be opened: {reason(error)}") from error
        except UserError:
            self.close()
            raise

    def __str__(self) -> str:
        """Its URL without the password."""
        return describe(self._engine)

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _transaction(self, kind: Literal["read", "written"]) -> Iterator[Session]:
        """A transaction; whether the store can be read or written is told to `health`."""
        part = f"the store cannot be {kind}"
        try:
            with self._sessions.begin() as session:
                yield session
        except (OperationalError, InterfaceError, PoolTimeoutError) as error:
            words = f"{part}: {fault(error)}"
            self.health.report(part, words, detail(error))
            raise StoreUnavailableError(f"{words}; ask again later") from error
        self.health.report(part, None)

    def check(self) -> None:
        """Write, without changing anything, which tells `health` whether that works; raises StoreUnavailableError."""
        with self._transaction("written") as session:
            _lock(session)

    @functools.cached_property
    def id(self) -> str:
        """The identifier of this store, the same for all who open it."""
        with self._transaction("read") as session:
            return session.scalars(select(StoreIdentity.id)).one()

    def count_kept(self) -> dict[str, tuple[int, int]]:
        """How many responses and sessions of all owners are kept, and their bytes."""
        with self._transaction("read") as session:
            return {
                name: count_rows(session, table)
                for name, table in (("responses", StoredResponse), ("sessions", SavedSession))
            }

    # API keys

    def add_key(self, key: ApiKey) -> None:
        """Store a new key."""
        with self._transaction("written") as session:
            session.add(key)

    def find_key(self, prefix: str) -> ApiKey | None:
        """The key whose text begins so, revoked and expired ones too."""
        with self._transaction("read") as session:
            return session.scalar(select(ApiKey).where(ApiKey.prefix == prefix))

    def list_keys(self) -> list[ApiKey]:
        """All keys, newest first."""
        with self._transaction("read") as session:
            return list(session.scalars(select(ApiKey).order_by(ApiKey.number.desc())))

    def revoke_key(self, key_id: str) -> ApiKey | None:
        """End a key for good; a key that was revoked before keeps the time of that. None where there is no such key."""
        revoked = func.coalesce(ApiKey.revoked, now())
        statement = (
            update(ApiKey).where(ApiKey.id == valid_id(key_id)).values(revoked=revoked).returning(ApiKey)
        )
        with self._transaction("written") as session:
            return session.scalar(statement)

    # DailyUsage

    def count_usage(
        self, owner: str | None, day: date, prompt_tokens: int, completion_tokens: int, requests: int = 1
    ) -> None:
        """Add requests and their tokens to a day of a key."""
        added = {"requests": requests, "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        dialect = sqlite if is_sqlite(self._engine) else postgresql
        statement = dialect.insert(DailyUsage).values(key_id=owner or "", day=day, **added)
        sums = {name: getattr(DailyUsage, name) + getattr(statement.excluded, name) for name in added}
        with self._transaction("written") as session:
            session.execute(statement.on_conflict_do_update(index_elements=["key_id", "day"], set_=sums))
            if owner is not None:
                session.execute(update(ApiKey).where(ApiKey.id == owner).values(last_used=now()))

    def usage(self, owner: str | None, day: date) -> DailyUsage:
        """What a key used on a day; zeros where it did nothing."""
        with self._transaction("read") as session:
            return session.get(DailyUsage, (owner or "", day)) or DailyUsage(
                key_id=owner or "", day=day, requests=0, prompt_tokens=0, completion_tokens=0
            )

    # Responses

    def create_response(
        self,
        owner: str | None,
        response_id: str,
        *,
        model: str,
        input_items: list[Any],
        response: dict[str, Any],
        previous_response_id: str | None = None,
    ) -> StoredResponse:
        """Store a response under an id from `new_id`; items and response are JSON, and its output is in `response`.

        The owner's oldest responses make room for it.
        """
        row = StoredResponse(
            id=response_id,
            key_id=owner,
            created=now(),
            bytes=len(json.dumps(input_items)) + len(json.dumps(response)),
            previous_response_id=previous_response_id,
            model=model,
            input_items=input_items,
            response=response,
        )
        with self._transaction("written") as session:
            session.add(row)
            session.flush()
            self.retention.make_room(session, owner)
        return row

    def delete_expired(self) -> list[SavedSession]:
        """Delete what is older than may be kept, but sessions in a turn; returns the sessions, for their files."""
        oldest = self.retention.oldest
        expired = delete(SavedSession).where(SavedSession.used < oldest, is_free())
        with self._transaction("written") as session:
            session.execute(delete(StoredResponse).where(StoredResponse.created < oldest))
            return list(session.scalars(expired.returning(SavedSession)))

    def get_response(self, owner: str | None, response_id: str) -> StoredResponse | None:
        """One response of an owner's."""
        return self._get(StoredResponse, owner, response_id)

    def responses_size(self, owner: str | None, response_ids: Collection[str]) -> int:
        """How many bytes those of an owner's responses take that have these ids."""
        ids = [valid_id(one) for one in response_ids]
        with self._transaction("read") as session:
            return count_rows(
                session, StoredResponse, belongs_to(StoredResponse, owner), StoredResponse.id.in_(ids)
            )[1]

    def response_chain_size(self, owner: str | None, response_id: str) -> int:
        """How many bytes a response and all that it goes back to take."""
        query = select(func.coalesce(func.sum(chain_numbers().c.bytes), 0))
        with self._transaction("read") as session:
            return int(session.scalars(query, {"owner": owner, "id": valid_id(response_id)}).one())

    def response_chain(self, owner: str | None, response_id: str) -> list[StoredResponse]:
        """A response and all that it goes back to, oldest first; empty where there is no such response.

        Where one of them was deleted, the first of the list still has a `previous_response_id`.
        """
        with self._transaction("read") as session:
            return list(session.scalars(response_chain(), {"owner": owner, "id": valid_id(response_id)}))

    def list_responses(
        self, owner: str | None, after: str | None = None, limit: int = 20
    ) -> Page[StoredResponse]:
        """An owner's responses, newest first, from the one after the id `after` on."""
        return self._list(StoredResponse, owner, after, limit)

    def delete_response(self, owner: str | None, response_id: str) -> StoredResponse | None:
        """Delete a response and return what it was; None where there is none."""
        return self._delete(StoredResponse, owner, response_id)

    # Sessions

    def create_session(
        self, owner: str | None, *, model: str, adapter: str | None, length: int, file_name: str, size: int
    ) -> SavedSession:
        """Store a session whose file, of `size` bytes, is written already, under a name from `new_session_file`.

        Raises QuotaExceededError where the owner has as many as may be kept.
        """
        row = SavedSession(
            id=new_id("sess"),
            key_id=owner,
            created=now(),
            bytes=size,
            model=model,
            adapter=adapter,
            length=length,
            file_name=_check_file_name(file_name),
            used=now(),
        )
        with self._transaction("written") as session:
            _lock(session)  # what is counted stays true until this session is counted too
            self.retention.require_session_room(session, owner, 1, size)
            session.add(row)
        return row

    def require_session_room(self, owner: str | None, count: int, size: int) -> None:
        """Raise QuotaExceededError where an owner may not keep so many sessions and bytes more."""
        with self._transaction("read") as session:
            self.retention.require_session_room(session, owner, count, size)

    def get_session(self, owner: str | None, session_id: str) -> SavedSession | None:
        """One session of an owner's."""
        return self._get(SavedSession, owner, session_id)

    def list_sessions(
        self, owner: str | None, after: str | None = None, limit: int = 20
    ) -> Page[SavedSession]:
        """An owner's sessions, newest first, from the one after the id `after` on."""
        return self._list(SavedSession, owner, after, limit)

    def lease_session(
        self, owner: str | None, session_id: str, holder: str, seconds: int
    ) -> SavedSession | None:
        """Lease a session for one turn of the id `holder`; None where another turn has the lease, or there is none."""
        free = (*has_id(SavedSession, owner, session_id), is_free())
        values = {"lease_holder": holder, "lease_expires": now() + seconds}
        with self._transaction("written") as session:
            return session.scalar(update(SavedSession).where(*free).values(values).returning(SavedSession))

    def renew_leases(self, holders: Collection[str], seconds: int) -> None:
        """Let the turns of these ids keep their leases for so long from now on."""
        held = update(SavedSession).where(SavedSession.lease_holder.in_(holders))
        with self._transaction("written") as session:
            session.execute(held.values(lease_expires=now() + seconds))

    def release_session(self, holder: str) -> None:
        """End the lease of a turn that changed nothing."""
        held = update(SavedSession).where(SavedSession.lease_holder == holder)
        with self._transaction("written") as session:
            session.execute(held.values(lease_holder=None, lease_expires=None))

    def update_session(
        self, leased: SavedSession, *, length: int, file_name: str, size: int
    ) -> SavedSession | None:
        """End a turn, whose state is in a new file; None where the lease was lost, or the session deleted."""
        held = update(SavedSession).where(
            SavedSession.number == leased.number,
            SavedSession.version == leased.version,
            SavedSession.lease_holder == leased.lease_holder,
        )
        values = {"length": length, "file_name": _check_file_name(file_name), "bytes": size, "used": now()}
        turned = {"version": leased.version + 1, "lease_holder": None, "lease_expires": None}
        with self._transaction("written") as session:
            return session.scalar(held.values(values | turned).returning(SavedSession))

    def delete_session(self, owner: str | None, session_id: str) -> SavedSession | None:
        """Delete a session and return what it was, for its file; None where there is none."""
        return self._delete(SavedSession, owner, session_id)

    def session_files(self) -> set[str]:
        """The file names of all sessions of all owners: any other file was left by a killed server."""
        with self._transaction("read") as session:
            return set(session.scalars(select(SavedSession.file_name)))

    def _get(self, table: type[_Row], owner: str | None, row_id: str) -> _Row | None:
        with self._transaction("read") as session:
            return session.scalar(select(table).where(*has_id(table, owner, row_id)))

    def _list(self, table: type[_Row], owner: str | None, after: str | None, limit: int) -> Page[_Row]:
        query = select(table).where(belongs_to(table, owner))
        if after is not None:
            last = self._get(table, owner, after)
            if last is None:
                raise ConfigError(f"there is no {after[:100]!r}; give the last id of the page before")
            query = query.where(table.number < last.number)
        with self._transaction("read") as session:
            rows = list(session.scalars(query.order_by(table.number.desc()).limit(limit + 1)))
        return Page(rows[:limit], has_more=len(rows) > limit)

    def _delete(self, table: type[_Row], owner: str | None, row_id: str) -> _Row | None:
        statement = delete(table).where(*has_id(table, owner, row_id)).returning(table)
        with self._transaction("written") as session:
            return session.scalar(statement)


def _lock(session: Session) -> None:
    """Have all others who write sessions wait for the end of a transaction, in both databases."""
    session.execute(update(StoreIdentity).values(id=StoreIdentity.id))


def _check_file_name(file_name: str) -> str:
    if not SESSION_FILE_PATTERN.fullmatch(file_name):
        raise ValueError(f"{file_name!r} is not a name of new_session_file()")
    return file_name
