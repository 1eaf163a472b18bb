"""Versions are those of the migrations now: an mmrec that knows only the number in mmrec_schema refuses the store."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
last_reader = "0.1.0"


def upgrade() -> None:
    """Count on, which an earlier mmrec takes for newer tables."""
    op.execute("UPDATE mmrec_schema SET version = 2")
