"""The tables of the first server: keys, usage, responses and sessions."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make the tables."""
    schema = op.create_table("mmrec_schema", sa.Column("version", _NUMBER, primary_key=True))
    op.bulk_insert(schema, [{"version": 1}])
    op.create_table(
        "mmrec_api_keys",
        sa.Column("number", _NUMBER, primary_key=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("hash", sa.String, nullable=False),
        sa.Column("prefix", sa.String, nullable=False, unique=True),
        sa.Column("created", _NUMBER, nullable=False),
        sa.Column("expires", _NUMBER),
        sa.Column("revoked", _NUMBER),
        sa.Column("last_used", _NUMBER),
        sa.Column("requests_per_minute", _NUMBER),
        sa.Column("tokens_per_day", _NUMBER),
    )
    op.create_table(
        "mmrec_usage",
        sa.Column("key_id", sa.String, primary_key=True),
        sa.Column("day", sa.Date, primary_key=True),
        sa.Column("requests", _NUMBER, nullable=False),
        sa.Column("prompt_tokens", _NUMBER, nullable=False),
        sa.Column("completion_tokens", _NUMBER, nullable=False),
    )
    op.create_table(
        "mmrec_sessions",
        *_owned(),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("adapter", sa.String),
        sa.Column("template", sa.String, nullable=False),
        sa.Column("length", _NUMBER, nullable=False),
        sa.Column("file_name", sa.String, nullable=False),
        sa.Column("used", _NUMBER, nullable=False),
    )
    op.create_table(
        "mmrec_responses",
        *_owned(),
        sa.Column("previous_response_id", sa.String),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("input_items", sa.Text, nullable=False),
        sa.Column("output_items", sa.Text, nullable=False),
        sa.Column(
            "session_id", sa.String, sa.ForeignKey("mmrec_sessions.id", ondelete="SET NULL"), index=True
        ),
    )


def _owned() -> list[sa.Column[Any]]:
    return [
        sa.Column("number", _NUMBER, primary_key=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("key_id", sa.String, sa.ForeignKey("mmrec_api_keys.id"), index=True),
        sa.Column("created", _NUMBER, nullable=False),
    ]
