"""Short greedy answers of each route by OpenAI's own client, to compare what a field of a request does to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming as ChatFields
from openai.types.completion_create_params import CompletionCreateParamsStreaming as CompletionFields
from openai.types.embedding_create_params import EmbeddingCreateParams as EmbeddingFields
from openai.types.responses.response_create_params import ResponseCreateParamsStreaming as ResponseFields

MESSAGES = [{"role": "user", "content": "Hello!"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Muş", "Van"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
CLOCK = {
    "type": "object",
    "properties": {"zone": {"enum": ["UTC", "TRT"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
SCHEMAS = {"weather": WEATHER, "clock": CLOCK}


def keys(fields: Any) -> frozenset[str]:
    """The names that one of the client's typed dictionaries knows."""
    known: frozenset[str] = fields.__required_keys__ | fields.__optional_keys__
    return known


class Ask:
    """Requests to one route: `fields` are the client's, `defaults` what is sent where a test says nothing else."""

    fields: Any
    defaults: dict[str, Any]

    def __init__(self, client: openai.OpenAI) -> None:
        self.client = client

    def create(self) -> Callable[..., Any]:
        """The client's method."""
        raise NotImplementedError

    def seen(self, answer: Any) -> Any:
        """All of an answer but its id, its time, and what repeats the request."""
        raise NotImplementedError

    def __call__(self, **fields: Any) -> Any:
        """The answer to the defaults with these fields; what the client does not know goes into `extra_body`."""
        body, known = {**self.defaults, **fields}, keys(self.fields)
        ours = {name: value for name, value in body.items() if name not in known}
        return self.create()(
            **{name: value for name, value in body.items() if name in known}, extra_body=ours
        )

    def refusal(self, **fields: Any) -> openai.BadRequestError:
        """The error that a request ends with: 400, in OpenAI's shape."""
        with pytest.raises(openai.BadRequestError) as caught:
            self(**fields)
        assert isinstance(caught.value.body, dict)
        assert set(caught.value.body) == {"message", "type", "param", "code"}
        return caught.value


class Texts(Ask):
    """Requests that are answered with text."""

    def texts(self, **fields: Any) -> list[str]:
        """What was written, for each choice."""
        raise NotImplementedError

    def text(self, **fields: Any) -> str:
        """What was written."""
        return self.texts(**fields)[0]


class Choices(Texts):
    """What chat and completions have in common."""

    def seen(self, answer: Any) -> Any:
        """Choices, and how many tokens they have."""
        return answer.choices, answer.usage.completion_tokens, answer.usage.prompt_tokens


class Chat(Choices):
    """POST /v1/chat/completions."""

    fields = ChatFields
    defaults = {"model": "mmrec", "messages": MESSAGES, "temperature": 0, "max_tokens": 24}

    def create(self) -> Callable[..., Any]:
        """The client's method."""
        return self.client.chat.completions.create

    def texts(self, **fields: Any) -> list[str]:
        """What was written, for each choice."""
        return [choice.message.content or "" for choice in self(**fields).choices]

    def calls(self, **fields: Any) -> list[Any]:
        """The functions that were called."""
        body = {"tools": TOOLS, "max_tokens": 250, **fields}
        return [call.function for call in self(**body).choices[0].message.tool_calls or []]


class Completions(Choices):
    """POST /v1/completions."""

    fields = CompletionFields
    defaults = {"model": "mmrec", "prompt": "Once there was", "temperature": 0, "max_tokens": 24}

    def create(self) -> Callable[..., Any]:
        """The client's method."""
        return self.client.completions.create

    def texts(self, **fields: Any) -> list[str]:
        """What was written, for each choice."""
        return [choice.text for choice in self(**fields).choices]


class Responses(Texts):
    """POST /v1/responses."""

    fields = ResponseFields
    defaults = {"model": "mmrec", "input": "Hello!", "temperature": 0, "max_output_tokens": 24}

    def create(self) -> Callable[..., Any]:
        """The client's method."""
        return self.client.responses.create

    def seen(self, answer: Any) -> Any:
        """The text, how it ended, and how many tokens there are."""
        return answer.output_text, answer.status, answer.usage.output_tokens, answer.usage.input_tokens

    def texts(self, **fields: Any) -> list[str]:
        """What was written."""
        return [self(**fields).output_text]

    def calls(self, **fields: Any) -> list[Any]:
        """The functions that were called."""
        body = {"tools": RESPONSE_TOOLS, "max_output_tokens": 250, **fields}
        return [item for item in self(**body).output if item.type == "function_call"]


class Embeddings(Ask):
    """POST /v1/embeddings."""

    fields = EmbeddingFields
    defaults = {"model": "mmrec", "input": "Once there was"}

    def create(self) -> Callable[..., Any]:
        """The client's method."""
        return self.client.embeddings.create

    def seen(self, answer: Any) -> Any:
        """The vectors."""
        return [row.embedding for row in answer.data]

    def vectors(self, **fields: Any) -> list[list[float]]:
        """The vectors."""
        found: list[list[float]] = self.seen(self(**fields))
        return found


TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": f"Tells the {name}.", "parameters": schema},
    }
    for name, schema in SCHEMAS.items()
]
RESPONSE_TOOLS = [{"type": "function", "strict": True, **tool["function"]} for tool in TOOLS]  # type: ignore[dict-item]
