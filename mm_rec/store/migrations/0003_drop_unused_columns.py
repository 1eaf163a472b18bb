"""Columns that nothing read are gone: a session's file knows its template itself."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
last_reader = "0.1.0"


def upgrade() -> None:
    """Drop them."""
    with op.batch_alter_table("mmrec_responses") as table:
        table.drop_index("ix_mmrec_responses_session_id")
        table.drop_column("session_id")
    with op.batch_alter_table("mmrec_sessions") as table:
        table.drop_column("template")
