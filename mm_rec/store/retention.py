"""How much is kept of one owner, and what makes room."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, func, or_, select
from sqlalchemy.orm import Session

from mm_rec.errors import MMRecError
from mm_rec.store.tables import OwnedMixin, SavedSession, StoredResponse


class QuotaExceededError(MMRecError):
    """One session more than an owner may keep."""


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept of one owner: so many responses and sessions, `max_bytes` of either, for `max_days`.

    Responses that are too many go, the oldest first; a session too many is refused. A response is kept from its
    answer on, a session from its last turn on.
    """

    max_responses: int = 10_000
    max_sessions: int = 1_000
    max_bytes: int = 4 * 2**30
    max_days: int = 30

    def __str__(self) -> str:
        """All of it in a line."""
        return (
            f"of each key {self.max_responses:,} responses and {self.max_sessions:,} sessions, "
            f"{self.max_bytes // 2**20:,} MiB of either, for {self.max_days:,} days"
        )

    @property
    def oldest(self) -> int:
        """The time, in seconds since 1970, before which nothing is kept."""
        return int(time.time()) - self.max_days * 86_400

    def make_room(self, session: Session, owner: str | None) -> None:
        """Delete the oldest responses of an owner who has more than may be kept; the newest always stays."""
        count, size = count_rows(session, StoredResponse, StoredResponse.key_id == owner)
        if count <= self.max_responses and size <= self.max_bytes:
            return
        newest = StoredResponse.number.desc()
        kept = (
            select(
                StoredResponse.number,
                func.row_number().over(order_by=newest).label("count"),
                func.sum(StoredResponse.bytes).over(order_by=newest).label("bytes"),
            )
            .where(StoredResponse.key_id == owner)
            .subquery()
        )
        over = or_(kept.c.count > self.max_responses, kept.c.bytes > self.max_bytes)
        too_many = select(kept.c.number).where(over, kept.c.count > 1)
        session.execute(delete(StoredResponse).where(StoredResponse.number.in_(too_many)))

    def require_session_room(self, session: Session, owner: str | None, count: int, size: int) -> None:
        """Raise QuotaExceededError where an owner may not keep so many sessions and bytes more."""
        kept, kept_bytes = count_rows(session, SavedSession, SavedSession.key_id == owner)
        if kept + count > self.max_sessions:
            raise QuotaExceededError(
                f"there are {kept:,} sessions of this key already, and {self.max_sessions:,} are kept; delete some, or "
                "start the server with a larger --keep-sessions"
            )
        if kept_bytes + size > self.max_bytes:
            more = f", and with this one {kept_bytes + size:,}" if size else ""
            raise QuotaExceededError(
                f"the sessions of this key take {kept_bytes:,} bytes{more}, and {self.max_bytes:,} are kept; delete "
                "some, or start the server with a larger --keep-disk"
            )


def count_rows(session: Session, table: type[OwnedMixin], *where: ColumnElement[bool]) -> tuple[int, int]:
    """How many rows there are, and their bytes."""
    query = select(func.count(), func.coalesce(func.sum(table.bytes), 0)).select_from(table)
    count, size = session.execute(query.where(*where)).one()
    return int(count), int(size)
