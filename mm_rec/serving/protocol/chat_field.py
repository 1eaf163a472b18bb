"""What a field of chat completions brings, where it is a module of its own.

Most fields are a line of `ChatRequest`: one that does nothing, one that is refused, one with the name and meaning of a
setting of `SamplingParams`. One that changes a request otherwise is a `ChatField`, named in `fields.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mm_rec.serving.protocol.schemas import ChatRequest


@dataclass(frozen=True, slots=True)
class ChatField:
    """A field of chat completions.

    `type`: what pydantic checks it by; it may always be null or absent. `description`: for /openapi.json. `apply`:
    returns the request that is answered instead of one that has the field with this value.
    """

    name: str
    type: Any
    description: str
    apply: Callable[[ChatRequest, Any], ChatRequest]
