"""A store has an identifier; a session has a lease and a version; responses and sessions have a size."""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
last_reader = "0.2.0"

_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Add them; a session from before has the size 0 until its next turn."""
    identity = op.create_table("mmrec_store", sa.Column("id", sa.String, primary_key=True))
    op.bulk_insert(identity, [{"id": f"store_{uuid.uuid4().hex}"}])
    op.add_column("mmrec_responses", _zero("bytes"))
    op.execute("UPDATE mmrec_responses SET bytes = length(input_items) + length(response)")
    op.create_index("ix_mmrec_responses_kept", "mmrec_responses", ["key_id", "number", "bytes"])
    op.add_column("mmrec_sessions", _zero("bytes"))
    op.add_column("mmrec_sessions", _zero("version"))
    op.add_column("mmrec_sessions", sa.Column("lease_holder", sa.String))
    op.add_column("mmrec_sessions", sa.Column("lease_expires", _NUMBER))


def _zero(name: str) -> sa.Column[int]:
    return sa.Column(name, _NUMBER, nullable=False, server_default="0")
