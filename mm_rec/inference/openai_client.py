"""What all who ask an OpenAI-compatible server need: the client library, and what a server says of its errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm_rec.errors import MissingExtraError

if TYPE_CHECKING:
    from openai import APIError

_SHOWN = 300  # characters of a server's own message


def import_openai(purpose: str) -> Any:
    """The module `openai`; raises MissingExtraError, which names the purpose, where it is not installed."""
    try:
        import openai
    except ImportError as error:
        raise MissingExtraError(purpose, "client") from error
    return openai


def shortened(text: str, key: str) -> str:
    """A server's own words on one line, without the key."""
    text = " ".join(text.split())
    text = text.replace(key, "…") if key else text
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def said(error: APIError, key: str) -> str:
    """What a server says of its error, after a colon; "" where it says nothing."""
    message = error.body.get("message") if isinstance(error.body, dict) else error.body
    text = shortened(str(message or error.message), key).rstrip(".")
    return f": {text}" if text else ""
