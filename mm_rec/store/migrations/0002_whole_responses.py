"""A response is kept as a whole, as it was given, and its input as the API lists it."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
last_reader = "0.1.0"

_RESPONSES = sa.table(
    "mmrec_responses",
    *map(sa.column, ("number", "id", "created", "model", "previous_response_id")),
    *map(sa.column, ("input_items", "output_items", "response")),
)


def upgrade() -> None:
    """Make whole responses of their outputs."""
    op.add_column("mmrec_responses", sa.Column("response", sa.Text))
    connection = op.get_bind()
    for number in connection.scalars(sa.select(_RESPONSES.c.number)).all():
        this_row = _RESPONSES.c.number == number
        row = connection.execute(sa.select(_RESPONSES).where(this_row)).one()
        items = [_listed(item) for item in json.loads(row.input_items)]
        changed = {"input_items": json.dumps(items), "response": json.dumps(_response(row))}
        connection.execute(sa.update(_RESPONSES).where(this_row).values(changed))
    with op.batch_alter_table("mmrec_responses") as table:
        table.alter_column("response", existing_type=sa.Text(), nullable=False)
        table.drop_column("output_items")


def _listed(item: dict[str, Any]) -> dict[str, Any]:
    """An item of the input with its content in parts."""
    content = item.get("content")
    if isinstance(content, str):
        part: dict[str, Any] = {"type": "input_text", "text": content}
        if item["role"] == "assistant":
            part = {"type": "output_text", "text": content, "annotations": []}
        item = {**item, "content": [part]}
    return {"status": "completed", **item}


def _response(row: sa.Row[Any]) -> dict[str, Any]:
    """What the server showed of such a response; what else was asked for was not kept."""
    output = json.loads(row.output_items)
    incomplete = bool(output) and output[-1].get("status") == "incomplete"
    return {
        "id": row.id,
        "object": "response",
        "created_at": row.created,
        "status": "incomplete" if incomplete else "completed",
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if incomplete else None,
        "instructions": None,
        "metadata": {},
        "model": row.model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": row.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
    }
