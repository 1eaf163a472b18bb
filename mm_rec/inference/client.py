"""The client library for OpenAI-compatible servers, and the details of their errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm_rec.errors import needs_extra, truncated

if TYPE_CHECKING:
    from openai import APIError


def import_openai(purpose: str) -> Any:
    """The module `openai`; raises MissingExtraError, which names the purpose, where it is not installed."""
    with needs_extra("openai", purpose):
        import openai
    return openai


def redact_key(text: str, key: str) -> str:
    """A server's own words on one line, shortened, without the key."""
    return truncated(text.replace(key, "…") if key else text)


def error_detail(error: APIError, key: str) -> str:
    """Return the server's own message of an error, after a colon; "" where it has none."""
    message = error.body.get("message") if isinstance(error.body, dict) else error.body
    text = redact_key(str(message or error.message), key).rstrip(".")
    return f": {text}" if text else ""
