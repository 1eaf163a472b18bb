"""How answers are written: JSON in UTF-8, and server-sent events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse

DONE = b"data: [DONE]\n\n"  # the last event of OpenAI's streams


def json_bytes(value: Any) -> bytes:
    """JSON as bytes; what is no Unicode in it (half of a surrogate pair) becomes "?"."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class SafeJSONResponse(JSONResponse):
    """An answer that is JSON."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json_bytes(content)


def sse_event(value: Mapping[str, Any], name: str | None = None) -> bytes:
    """A server-sent event, as the Responses API with its name."""
    head = b"" if name is None else b"event: %s\n" % name.encode()
    return head + b"data: %s\n\n" % json_bytes(value)
