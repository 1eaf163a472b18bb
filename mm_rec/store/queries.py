"""Parts of the store's queries: whose rows, which of them, and the responses that one goes back to."""

from __future__ import annotations

import functools
import time

from sqlalchemy import CTE, ColumnElement, Select, String, bindparam, or_, select

from mm_rec.store.tables import ID_PATTERN, OwnedMixin, SavedSession, StoredResponse


@functools.cache
def chain_numbers() -> CTE:
    """The numbers and sizes of the responses that the one of an `id` goes back to."""
    step = select(StoredResponse.number, StoredResponse.previous_response_id, StoredResponse.bytes)
    step = step.where(StoredResponse.key_id.is_not_distinct_from(bindparam("owner", type_=String)))
    chain = step.where(StoredResponse.id == bindparam("id")).cte(recursive=True)
    return chain.union(step.join(chain, StoredResponse.id == chain.c.previous_response_id))


@functools.cache
def response_chain() -> Select[StoredResponse]:
    """The responses of such a chain; made once, which takes longer than to ask."""
    chain = chain_numbers()
    query = select(StoredResponse).join(chain, StoredResponse.number == chain.c.number)
    return query.order_by(StoredResponse.number)


def is_free() -> ColumnElement[bool]:
    """Whether no turn has the lease of a session; that of a server which was killed ends by itself."""
    return or_(SavedSession.lease_holder.is_(None), SavedSession.lease_expires < now())


def belongs_to(table: type[OwnedMixin], owner: str | None) -> ColumnElement[bool]:
    """Whether a row is an owner's."""
    return table.key_id == owner  # SQLAlchemy writes IS NULL for None


def has_id(table: type[OwnedMixin], owner: str | None, row_id: str) -> tuple[ColumnElement[bool], ...]:
    """Whether a row is an owner's, and has this id."""
    return belongs_to(table, owner), table.id == valid_id(row_id)


def valid_id(text: str) -> str:
    """An id as it is, and "" for what can be none: PostgreSQL fails at a zero byte or a lone surrogate."""
    return text if ID_PATTERN.fullmatch(text) else ""


def now() -> int:
    """The time in seconds since 1970."""
    return int(time.time())
