"""A conversation with a model behind an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

from mm_rec.data.conversations.conversation import ChatMessage
from mm_rec.errors import ConfigError, UserError
from mm_rec.inference.client import ChatClient, ClientConfig, find_url_problem

if TYPE_CHECKING:
    from mm_rec.inference.sampler import SamplingParams


class RemoteChat:
    """Messages, all of which are sent with every turn; the server may remember what it has read of them.

    The key is that of the environment variable OPENAI_API_KEY.
    """

    interruptible = True  # nothing here is half done when an exception comes

    def __init__(
        self, url: str, model: str | None, sampling: SamplingParams, system: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """`model`: its name there, or None for the first that the server lists; `extra`: fields that OpenAI has not.

        Raises ConfigError or DataError where the server does not say which models it has.
        """
        if problem := find_url_problem(url, written_down=False):
            raise ConfigError(f"--url {problem}")
        # Without retries: whoever waits at a terminal is told at once, and may try again.
        config = ClientConfig(
            url=url,
            purpose="talking to a server",
            url_option="--url",
            too_long="/reset forgets it; mmrec serve --when-full drop makes a server of mmrec's drop the oldest turns",
        )
        self._client = ChatClient(config, model or "")
        self._initial_messages = [] if system is None else [ChatMessage("system", system)]
        self._options = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            **({} if sampling.seed is None else {"seed": sampling.seed}),
            "extra_body": dict(extra or {}),
        }
        self.reset()
        if model is None:
            try:
                self._client.model = self._first_model()
            except UserError:
                self.close()
                raise

    @property
    def model(self) -> str:
        """The model's name on the server."""
        return self._client.model

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
            for piece in self._client.stream([one.to_template() for one in messages], **self._options):
                reply += piece
                yield piece
            whole = True
        finally:
            if whole or reply:
                self.messages = [*messages, ChatMessage("assistant", reply)]

    def _first_model(self) -> str:
        if name := self._client.first_model():
            return name
        url = self._client.url
        raise ConfigError(
            f"{url}/models lists no model. Name one: mmrec chat --url {url} MODEL; "
            "or is this no OpenAI-compatible server? The URL of one usually ends with /v1"
        )
