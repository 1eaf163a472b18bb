"""Client of a model behind an OpenAI-compatible endpoint; its errors say what to change."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mm_rec.errors import ConfigError, DataError, UserError
from mm_rec.inference.client import error_detail, import_openai, redact_key

if TYPE_CHECKING:
    from openai import APIError, APIStatusError

MAX_TOKENS = 1024  # of a reply
_TIMEOUT = 300.0  # seconds for a reply: a model on a CPU is slow
# The client waits for what Retry-After says (up to two minutes), otherwise for 0.5, 1, 2 … 8 seconds.
_RETRIES = 6


@dataclass(frozen=True, slots=True)
class EndpointReply:
    """A model's reply; `truncated` where it reached MAX_TOKENS."""

    text: str
    truncated: bool


class ChatEndpoint:
    """A model behind `POST URL/chat/completions`. Threads may ask it at the same time.

    The key is read from the environment variable `key_variable` and kept nowhere else; a server of one's own often
    needs none. Rate limits (429), server errors and lost connections are retried a bounded number of times.
    """

    def __init__(
        self, url: str, model: str, *, key_variable: str = "OPENAI_API_KEY", temperature: float = 0.7
    ) -> None:
        _require_plain(url)
        self.url = url.rstrip("/")
        self.model = model
        self._variable = key_variable
        self._key = os.environ.get(key_variable, "").strip()
        self._temperature = temperature
        self._openai = import_openai("asking a model behind an endpoint")
        self._client = self._openai.OpenAI(
            base_url=self.url, api_key=self._key or "none", timeout=_TIMEOUT, max_retries=_RETRIES
        )

    def ask(self, prompt: str) -> EndpointReply:
        """Ask with one user message; raises ConfigError or DataError with the remedy where there is no reply."""
        try:
            completion = self._client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": prompt}],
                temperature=self._temperature,
                max_tokens=MAX_TOKENS,
            )
        except self._openai.APIError as error:
            raise self._explain(error) from error
        except json.JSONDecodeError as error:
            raise self._not_openai(error.doc) from error
        choices = getattr(completion, "choices", None)  # the client does not check what a server sent
        if not choices:
            raise self._not_openai(
                completion if isinstance(completion, str) else completion.to_json(indent=None)
            )
        text = choices[0].message.content or ""
        text = text.rpartition("</think>")[2]  # what a reasoning model thought aloud is no part of its answer
        text = text.encode(errors="ignore").decode()  # half an emoji, which JSON can hold and a file cannot
        return EndpointReply(text.strip(), choices[0].finish_reason == "length")

    def _not_openai(self, text: str) -> DataError:
        return DataError(
            f"the answer is not a chat completion: {redact_key(text, self._key)} Is this the base URL of an "
            "OpenAI-compatible API? It usually ends with /v1",
            self.url,
        )

    def _explain(self, error: APIError) -> UserError:
        """Return the error for a person."""
        if isinstance(error, self._openai.APIStatusError):
            return self._explain_status(error)
        if isinstance(error, self._openai.APITimeoutError):
            return DataError(
                f"the model {self.model!r} did not reply within {_TIMEOUT:,.0f} seconds. Is the server overloaded?",
                self.url,
            )
        return ConfigError(
            f"{self.url}: nothing answers there ({redact_key(str(error.__cause__ or error), self._key)}). "
            "Is the server running? Check --endpoint, and HTTPS_PROXY and NO_PROXY if there is a proxy"
        )

    def _explain_status(self, error: APIStatusError) -> UserError:
        words, status = error_detail(error, self._key), error.status_code
        if status == 401:  # its text may hold the key
            known = "is not set" if not self._key else "holds a key that was refused"
            return ConfigError(
                f"{self.url} asks for a key (401): the environment variable {self._variable} {known}. "
                f"export {self._variable}=…, or name another variable with --api-key-env"
            )
        if status == 403:
            return ConfigError(f"{self.url} does not let this key use {self.model!r} (403){words}")
        if status == 404:
            return ConfigError(
                f"{self.url}/chat/completions was not found, or has no model {self.model!r} (404){words}. "
                f"Check --endpoint (it usually ends with /v1) and --model; {self.url}/models lists the models"
            )
        if status == 429:
            wait = error.response.headers.get("retry-after")
            when = f"in {wait} seconds" if wait else "later"
            return DataError(f"the limit of requests is reached (429){words}. Try again {when}", self.url)
        if status >= 500:
            return DataError(
                f"the server failed ({status}), also after {_RETRIES} more tries{words}", self.url
            )
        return ConfigError(f"{self.url} refused the request for {self.model!r} ({status}){words}")


def _require_plain(url: str) -> None:
    """Raise ConfigError unless a URL is http(s) and free of secrets: it is written into every row."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(f"--endpoint {url!r} is not a URL such as http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query:
        raise ConfigError(
            "--endpoint holds a password or a query, and it is written into every row. "
            "Put the key into the environment variable that --api-key-env names"
        )
