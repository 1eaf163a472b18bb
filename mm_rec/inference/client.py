"""The client of OpenAI-compatible servers: `chat --url`, the judge and self-instruct ask through it.

What goes wrong is an error of ours that says what to do, without the key; what a server says is repeated in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from mm_rec.errors import ConfigError, DataError, UserError, needs_extra, truncated

if TYPE_CHECKING:
    from openai import APIError, APIStatusError

_CONNECT_TIMEOUT = 5.0  # seconds, the client library's own

Message = Mapping[str, Any]
"""A message in OpenAI's form: {"role": …, "content": …}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """A server, how patiently it is asked, and what a person calls these settings.

    Rate limits (429), server errors and lost connections are tried `retries` more times, after what Retry-After says
    (up to two minutes) or growing pauses. `timeout` is in seconds.
    """

    url: str
    purpose: str  # in the error where the client library is not installed
    url_option: str
    key_variable: str = "OPENAI_API_KEY"  # the environment variable that holds the key
    key_option: str | None = None
    timeout: float = 600.0
    retries: int = 0
    too_long: str = "Shorten it"  # what to do where a conversation does not fit the model


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer; `truncated` where it reached the most tokens that were asked for."""

    text: str
    truncated: bool


def find_url_problem(url: str, *, written_down: bool) -> str | None:
    """Say why a URL cannot be used, or None; one that is `written_down` holds no secrets."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or half an IPv6 address
        usable = False
    if not usable or not url.isprintable():
        return f"{url!r} is not a URL such as http://127.0.0.1:8000/v1"
    if written_down and ("@" in parts.netloc or parts.query):
        return "the URL holds a password or a query, and is written down. Put the key into an environment variable"
    return None


class ChatClient:
    """A server that is asked for chat completions of `model`. Threads may ask at the same time.

    The key is read from the environment and kept nowhere else; a server of one's own often needs none.
    """

    def __init__(self, config: ClientConfig, model: str = "") -> None:
        """Raises MissingExtraError without the client library."""
        with needs_extra("openai", config.purpose):
            import openai
        self._openai = openai
        self._config = config
        self._key = os.environ.get(config.key_variable, "").strip()
        self.url, self.model = config.url.rstrip("/"), model
        self._client = openai.OpenAI(
            base_url=self.url,
            api_key=self._key or "none",  # the library always wants one
            timeout=openai.Timeout(config.timeout, connect=_CONNECT_TIMEOUT),
            max_retries=config.retries,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def first_model(self) -> str | None:
        """Return the first model that the server lists, or None; raises ConfigError or DataError."""
        try:
            # Not by models.list(), which breaks where the answer is no list.
            listed = self._client.get("/models", cast_to=object)
        except self._openai.APIError as error:
            raise self._explain(error, begun=False) from error
        except ValueError as error:
            raise self._not_openai(str(error)) from error
        match listed:
            case {"data": [{"id": str(name)}, *_]}:
                return name
            case _:
                return None

    def complete(self, messages: Sequence[Message], **options: Any) -> Completion:
        """Return the answer to messages; raises ConfigError or DataError with the remedy where there is none."""
        sent: Any = messages
        try:
            answer: Any = self._client.chat.completions.create(model=self.model, messages=sent, **options)
        except self._openai.APIError as error:
            raise self._explain(error, begun=False) from error
        except ValueError as error:  # no JSON, or no UTF-8
            raise self._not_openai(str(error)) from error
        choices = getattr(answer, "choices", None)  # the library does not check what came
        if not choices:
            raise self._not_openai(answer if isinstance(answer, str) else "it has no choices")
        truncated_by_length = getattr(choices[0], "finish_reason", None) == "length"
        return Completion(_text(getattr(choices[0], "message", None)), truncated_by_length)

    def stream(self, messages: Sequence[Message], **options: Any) -> Iterator[str]:
        """Yield the answer to messages as it comes; raises as `complete`, also where it breaks off."""
        begun = ended = False
        sent: Any = messages
        try:
            with self._client.chat.completions.create(
                model=self.model, messages=sent, stream=True, **options
            ) as stream:
                for chunk in stream:
                    for choice in getattr(chunk, "choices", None) or ():
                        begun = True
                        ended = ended or getattr(choice, "finish_reason", None) is not None
                        if text := _text(getattr(choice, "delta", None)):
                            yield text
        except self._openai.APIError as error:
            raise self._explain(error, begun) from error
        except ValueError as error:
            raise self._not_openai(str(error)) from error
        if not begun:
            raise self._not_openai("no message came")
        if not ended:
            raise self._broken_off("it ended without a reason")

    def _redact(self, text: str) -> str:
        """A server's own words on one line, shortened, without the key."""
        return truncated(text.replace(self._key, "…") if self._key else text)

    def _detail(self, error: APIError) -> str:
        """The server's own message of an error, after a colon; "" where it has none."""
        message = error.body.get("message") if isinstance(error.body, dict) else error.body
        text = self._redact(str(message or error.message)).rstrip(".")
        return f": {text}" if text else ""

    def _not_openai(self, what: str) -> DataError:
        return DataError(
            f"the answer is not a chat completion ({self._redact(what)}). Is this the URL of an "
            "OpenAI-compatible server? It usually ends with /v1",
            self.url,
        )

    def _broken_off(self, why: str) -> DataError:
        return DataError(
            f"the answer broke off ({self._redact(why)}). What came of it is kept; ask for the rest, or look "
            "after the server",
            self.url,
        )

    def _explain(self, error: APIError, begun: bool) -> UserError:
        """The error for a person; `begun`: something of the answer had come."""
        if isinstance(error, self._openai.APIStatusError):
            return self._explain_status(error)
        why = str(error.__cause__ or error)
        if begun:
            return self._broken_off(why)
        if isinstance(error, self._openai.APITimeoutError):
            return DataError(
                f"the server did not answer within {self._config.timeout:,.0f} seconds. Is it overloaded? "
                "Try again later",
                self.url,
            )
        if isinstance(error, self._openai.APIConnectionError):
            return ConfigError(
                f"{self.url}: nothing answers there ({self._redact(why)}). Is the server running (mmrec serve)? "
                f"Check {self._config.url_option}, and HTTPS_PROXY and NO_PROXY if there is a proxy"
            )
        return DataError(f"the server failed{self._detail(error)}. Try again", self.url)

    def _explain_status(self, error: APIStatusError) -> UserError:
        words, status, retries = self._detail(error), error.status_code, self._config.retries
        if status == 401:
            return self._explain_key()  # not in the server's words, which may hold the key
        if status == 404:
            return self._explain_absent(error, words)
        if status == 429:
            wait = error.response.headers.get("retry-after")
            when = f"in {self._redact(wait)} seconds" if wait else "later"
            return DataError(f"the server has too much to do (429){words}. Try again {when}", self.url)
        if status >= 500:
            tries = f", also after {retries} more tries" if retries else ""
            return DataError(f"the server failed ({status}){tries}{words}. Try again", self.url)
        if error.code == "context_length_exceeded":
            return DataError(
                f"the conversation is too long for the model{words}. {self._config.too_long}", self.url
            )
        refused = "does not let this key use" if status == 403 else "refuses the request for"
        return ConfigError(f"{self.url} {refused} {self.model!r} ({status}){words}")

    def _explain_key(self) -> ConfigError:
        variable, option = self._config.key_variable, self._config.key_option
        known = "holds a key that was refused" if self._key else "is not set"
        other = f", or name another variable with {option}" if option else ""
        return ConfigError(
            f"{self.url} asks for a key (401), and the environment variable {variable} {known}. "
            f"export {variable}=…{other} (on a server of mmrec's, mmrec keys create makes one)"
        )

    def _explain_absent(self, error: APIStatusError, words: str) -> ConfigError:
        wrong = [f"has no model {self.model!r}"] if self.model else []
        advice = f"{self.url}/models lists the models"
        if not wrong or error.code != "model_not_found":
            wrong.append("is not the URL of an API")
            advice += f"; check {self._config.url_option}, which usually ends with /v1"
        return ConfigError(f"{self.url} {', or '.join(wrong)} (404){words}. {advice}")


def _text(message: Any) -> str:
    """The text of an answer or of a piece of one, or of a refusal."""
    text = getattr(message, "content", None) or getattr(message, "refusal", None)
    # Half of a surrogate pair can be written in JSON, and in no file and on no terminal.
    return text.encode(errors="ignore").decode() if isinstance(text, str) else ""
