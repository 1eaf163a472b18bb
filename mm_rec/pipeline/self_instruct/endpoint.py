"""The model that self-instruct asks, behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from mm_rec.errors import ConfigError
from mm_rec.inference.client import ChatClient, ClientConfig, Completion, find_url_problem

MAX_TOKENS = 1024  # of a reply
_TIMEOUT = 300.0  # seconds for a reply: a model on a CPU is slow
_RETRIES = 6


class ChatEndpoint:
    """A model behind `POST URL/chat/completions`. Threads may ask it at the same time."""

    def __init__(
        self, url: str, model: str, *, key_variable: str = "OPENAI_API_KEY", temperature: float = 0.7
    ) -> None:
        if problem := find_url_problem(url, written_down=True):  # it stands in every row
            raise ConfigError(f"--endpoint: {problem}")
        config = ClientConfig(
            url=url,
            purpose="asking a model behind an endpoint",
            url_option="--endpoint",
            key_variable=key_variable,
            key_option="--api-key-env",
            timeout=_TIMEOUT,
            retries=_RETRIES,
        )
        self._client = ChatClient(config, model)
        self._temperature = temperature
        self.url, self.model = self._client.url, model

    def ask(self, prompt: str) -> Completion:
        """Ask with one user message; raises ConfigError or DataError with the remedy where there is no reply."""
        reply = self._client.complete(
            [{"role": "user", "content": prompt}], temperature=self._temperature, max_tokens=MAX_TOKENS
        )
        text = reply.text.rpartition("</think>")[
            2
        ]  # what a reasoning model thought aloud is no part of its answer
        return Completion(text.strip(), reply.truncated)
