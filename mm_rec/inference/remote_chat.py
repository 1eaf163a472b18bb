"""A conversation with a model behind an OpenAI-compatible server; what goes wrong says what to do."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mm_rec.data.conversations.conversation import ChatMessage
from mm_rec.errors import ConfigError, DataError, UserError
from mm_rec.inference.client import error_detail, import_openai, redact_key

if TYPE_CHECKING:
    from openai import APIError, APIStatusError

    from mm_rec.inference.sampler import SamplingParams


class RemoteChat:
    """Messages, all of which are sent with every turn; the server may remember what it has read of them.

    The key is that of the environment variable OPENAI_API_KEY; a server of one's own often needs none.
    """

    interruptible = True  # nothing here is half done when an exception comes

    def __init__(
        self, url: str, model: str | None, sampling: SamplingParams, system: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """`model`: its name there, or None for the first that the server lists; `extra`: fields that OpenAI has not.

        Raises ConfigError or DataError where the server does not say which models it has.
        """
        if not _is_url(url):
            raise ConfigError(f"--url {url!r} is not a URL such as http://127.0.0.1:8000/v1")
        self._openai = import_openai("talking to a server")
        self._url, self._key = url.rstrip("/"), os.environ.get("OPENAI_API_KEY", "").strip()
        # Tried once: whoever waits at a terminal is told at once, and may try again.
        self._client = self._openai.OpenAI(base_url=self._url, api_key=self._key or "none", max_retries=0)
        self._initial_messages = [] if system is None else [ChatMessage("system", system)]
        self._options = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            **({} if sampling.seed is None else {"seed": sampling.seed}),
            "extra_body": dict(extra or {}),
        }
        self.reset()
        self.model = model or ""
        if model is None:
            try:
                self.model = self._first_model()
            except UserError:
                self.close()
                raise

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = list(self._initial_messages)

    def send(self, content: str) -> Generator[str]:
        """Send a message from the user and yield the reply as it comes.

        A reply that does not come to its end is kept as far as it came. Raises UserError, DataError or ConfigError with
        the remedy; where nothing of a reply came, nothing is changed.
        """
        try:
            content.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"a message is not UTF-8 ({error}). Set the terminal to UTF-8") from error
        messages = [*self.messages, ChatMessage("user", content)]
        reply, whole = "", False
        try:
            for piece in self._stream_reply(messages):
                reply += piece
                yield piece
            whole = True
        finally:
            if whole or reply:
                self.messages = [*messages, ChatMessage("assistant", reply)]

    def _stream_reply(self, messages: Sequence[ChatMessage]) -> Iterator[str]:
        begun = ended = False
        sent: Any = [message.to_template() for message in messages]
        try:
            with self._client.chat.completions.create(
                model=self.model, messages=sent, stream=True, **self._options
            ) as stream:
                for chunk in stream:  # the client does not check what came
                    for choice in getattr(chunk, "choices", None) or ():
                        begun = True
                        ended = ended or getattr(choice, "finish_reason", None) is not None
                        if text := _text(choice):
                            yield text
        except self._openai.APIError as error:
            raise self._explain(error, begun) from error
        except ValueError as error:  # no JSON, or no UTF-8
            raise self._not_openai(str(error)) from error
        if not begun:
            raise self._not_openai("no message came")
        if not ended:
            raise self._broken_off("it ended without a reason")

    def _first_model(self) -> str:
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
                raise ConfigError(
                    f"{self._url}/models lists no model. Name one: mmrec chat --url {self._url} MODEL; "
                    "or is this no OpenAI-compatible server? The URL of one usually ends with /v1"
                )

    def _not_openai(self, what: str) -> DataError:
        return DataError(
            f"the answer is not a chat completion ({redact_key(what, self._key)}). Is this the URL of an "
            "OpenAI-compatible server? It usually ends with /v1",
            self._url,
        )

    def _broken_off(self, why: str) -> DataError:
        return DataError(
            f"the answer broke off ({redact_key(why, self._key)}). What came of it is kept; ask for the "
            "rest, or look after the server",
            self._url,
        )

    def _explain(self, error: APIError, begun: bool) -> UserError:
        """The error for a person; `begun`: something of the answer had come."""
        if isinstance(error, self._openai.APIStatusError):
            return self._explain_status(error)
        why = str(error.__cause__ or error)
        if begun:
            return self._broken_off(why)
        if isinstance(error, self._openai.APITimeoutError):
            return DataError("the server does not answer. Is it overloaded? Try again later", self._url)
        if isinstance(error, self._openai.APIConnectionError):
            return ConfigError(
                f"{self._url}: nothing answers there ({redact_key(why, self._key)}). Is the server running "
                "(mmrec serve)? Check --url, and HTTPS_PROXY and NO_PROXY if there is a proxy"
            )
        return DataError(f"the server failed{error_detail(error, self._key)}. Try again", self._url)

    def _explain_status(self, error: APIStatusError) -> UserError:
        words, status = error_detail(error, self._key), error.status_code
        if status == 401:  # its text may hold the key
            known = "holds a key that was refused" if self._key else "is not set"
            return ConfigError(
                f"{self._url} asks for a key (401), and the environment variable OPENAI_API_KEY {known}. "
                "export OPENAI_API_KEY=… (on a server of mmrec's, mmrec keys create makes one)"
            )
        if status == 404:
            wrong = [f"has no model {self.model!r}"] if self.model else []
            advice = f"{self._url}/models lists the models"
            if not wrong or error.code != "model_not_found":
                wrong.append("is not the URL of an API")
                advice += "; the URL usually ends with /v1"
            return ConfigError(f"{self._url} {', or '.join(wrong)} (404){words}. {advice}")
        if status == 429:
            wait = error.response.headers.get("retry-after")
            when = f"in {redact_key(wait, self._key)} seconds" if wait else "later"
            return DataError(f"the server has too much to do (429){words}. Try again {when}", self._url)
        if status >= 500:
            return DataError(f"the server failed ({status}){words}. Try again", self._url)
        if error.code == "context_length_exceeded":
            return DataError(
                f"the conversation is too long for the model{words}. /reset forgets it; "
                "mmrec serve --when-full drop makes a server of mmrec's drop the oldest turns",
                self._url,
            )
        return ConfigError(f"{self._url} refuses the request ({status}){words}")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.netloc)
            and parts.port != 0
            and text.isprintable()
        )
    except ValueError:  # a port that is no number, or half an IPv6 address
        return False


def _text(choice: Any) -> str:
    """Return the text of a streamed chunk, an answer's or a refusal's."""
    delta = getattr(choice, "delta", None)
    text = getattr(delta, "content", None) or getattr(delta, "refusal", None)
    # Half of a surrogate pair can be written in JSON, and on no terminal.
    return text.encode(errors="ignore").decode() if isinstance(text, str) else ""
