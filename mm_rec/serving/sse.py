"""JSON responses in UTF-8, and server-sent events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse

DONE = b"data: [DONE]\n\n"  # the last event of the streams of chat completions and completions


def json_bytes(value: Any) -> bytes:
    """Return JSON as UTF-8; half of a surrogate pair, which is no Unicode, becomes "?"."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class SafeJSONResponse(JSONResponse):
    """A JSON response that never fails on text that is no Unicode."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json_bytes(content)


def sse_event(value: Mapping[str, Any]) -> bytes:
    """Return a server-sent event, named by its `type` where it has one (the Responses API)."""
    head = b"event: %s\n" % value["type"].encode() if "type" in value else b""
    return head + b"data: %s\n\n" % json_bytes(value)
