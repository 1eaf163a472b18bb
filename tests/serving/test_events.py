"""One stream of events has the same content in every wire form, as chunks and as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from serving.server import Server

from mm_rec.inference.sampler import SampledToken
from mm_rec.serving.context import RequestContext
from mm_rec.serving.errors import ApiError
from mm_rec.serving.generation import TokenUsage
from mm_rec.serving.protocol.chat_encoder import ChatEncoder
from mm_rec.serving.protocol.completion_encoder import CompletionEncoder
from mm_rec.serving.protocol.encoding import Chunk, Encoder
from mm_rec.serving.protocol.events import Delta, Finish, OutputEvent, Usage
from mm_rec.serving.protocol.response_encoder import ResponseEncoder
from mm_rec.serving.protocol.response_schemas import ResponseRequest
from mm_rec.serving.protocol.schemas import ChatRequest, CompletionRequest, StreamOptions
from mm_rec.serving.protocol.tool_calls import ParsedDelta

ASKED: dict[str, Any] = {
    "model": "llama",
    "stream": True,
    "stream_options": StreamOptions(include_usage=True),
}
CALL = (
    ParsedDelta("reasoning", "So."),
    ParsedDelta("text", "Wait"),
    ParsedDelta("text", "."),
    ParsedDelta("call", "clock", 0, "call_1"),
    ParsedDelta("arguments", '{"zone": ', 0),
    ParsedDelta("arguments", '"UTC"}', 0),
)
TEXT = (ParsedDelta("text", "Küçük"), ParsedDelta("text", " çocuk"))


@pytest.fixture
def context(server: Server) -> RequestContext:
    return RequestContext(server.context, None, server.context.registry.find("llama"), 0.0)


def chat_encoder(context: RequestContext) -> ChatEncoder:
    body = ChatRequest.model_validate(
        {**ASKED, "messages": [{"role": "user", "content": "Hi"}], "logprobs": True}
    )
    return ChatEncoder(context, body, 1)


def answer(
    parts: Iterable[ParsedDelta], reason: str = "stop", logprob: float | None = None
) -> list[OutputEvent]:
    """The events of an answer, each part with a token."""
    tokens = [] if logprob is None else [SampledToken(70, logprob)]
    deltas: list[OutputEvent] = [Delta(0, part, tokens) for part in parts]
    return [*deltas, Finish(0, reason), Usage(TokenUsage(5, 2, len(deltas)))]


def encoded(encoder: Encoder, events: Iterable[OutputEvent]) -> list[Chunk]:
    """All chunks of a stream, as they are when they are sent."""
    chunks = [*encoder.begin()]
    for event in events:
        chunks += encoder.encode(event)
    return [*chunks, *encoder.end()]


def test_chunks_of_a_chat_are_its_message(context: RequestContext) -> None:
    encoder = chat_encoder(context)
    *chunks, last = encoded(encoder, answer(CALL, logprob=-0.5))
    whole = encoder.body()
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    message = whole["choices"][0]["message"]
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"] == "Wait."
    assert [delta["reasoning_content"] for delta in deltas if "reasoning_content" in delta] == ["So."]
    [call] = message["tool_calls"]
    fragments = [one["function"] for delta in deltas for one in delta.get("tool_calls", [])]
    assert (
        "".join(one["arguments"] for one in fragments) == call["function"]["arguments"] == '{"zone": "UTC"}'
    )
    assert (call["id"], call["function"]["name"], fragments[0]["name"]) == ("call_1", "clock", "clock")
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "tool_calls"
    assert len(whole["choices"][0]["logprobs"]["content"]) == len(CALL)
    assert last["usage"] == whole["usage"] == TokenUsage(5, 2, len(CALL)).chat() and not last["choices"]


def test_tokens_without_text_are_a_chunk_of_their_own(context: RequestContext) -> None:
    chunks = encoded(chat_encoder(context), answer([ParsedDelta("text", "")], logprob=-0.5))
    choice = chunks[1]["choices"][0]
    assert choice["delta"] == {} and [one["logprob"] for one in choice["logprobs"]["content"]] == [-0.5]


def test_an_answer_that_is_cut_has_no_calls_as_its_reason(context: RequestContext) -> None:
    encoder = chat_encoder(context)
    assert encoded(encoder, answer(CALL, "length"))[-2]["choices"][0]["finish_reason"] == "length"


def test_chunks_of_a_completion_are_its_text(context: RequestContext) -> None:
    body = CompletionRequest.model_validate({**ASKED, "prompt": "Once", "logprobs": 0})
    encoder = CompletionEncoder(context, body, 1)
    *chunks, last = encoded(encoder, answer(TEXT, "length", -0.5))
    whole = encoder.body()
    assert (
        "".join(chunk["choices"][0]["text"] for chunk in chunks)
        == whole["choices"][0]["text"]
        == "Küçük çocuk"
    )
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks[:-1]]
    for key, values in whole["choices"][0]["logprobs"].items():
        assert [value for one in told for value in one[key]] == values and len(values) == len(TEXT)
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "length"
    assert last["usage"] == whole["usage"]


def test_events_of_a_response_are_its_items(context: RequestContext) -> None:
    encoder = ResponseEncoder(context, ResponseRequest(model="llama", input="Hi"), reasons=True)
    events = encoded(encoder, answer(CALL))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    output = encoder.body()["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call"]
    for kind, told in {
        "response.reasoning_text.delta": output[0]["content"][0]["text"],
        "response.output_text.delta": output[1]["content"][0]["text"],
        "response.function_call_arguments.delta": output[2]["arguments"],
    }.items():
        assert "".join(event["delta"] for event in events if event["type"] == kind) == told != ""
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == output
    assert events[-1]["type"] == "response.completed" and events[-1]["response"]["usage"][
        "output_tokens"
    ] == len(CALL)


def test_the_same_text_is_said_by_all_three(context: RequestContext) -> None:
    chat = chat_encoder(context)
    completion = CompletionEncoder(context, CompletionRequest(model="llama", prompt="Once"), 1)
    response = ResponseEncoder(context, ResponseRequest(model="llama", input="Hi"), reasons=False)
    for encoder in (chat, completion, response):
        encoded(encoder, answer(TEXT))
    said = [
        chat.body()["choices"][0]["message"]["content"],
        completion.body()["choices"][0]["text"],
        response.body()["output"][0]["content"][0]["text"],
    ]
    assert said == ["Küçük çocuk"] * 3
    error = ApiError(503, "the server is stopping")
    assert chat.failed(error) == completion.failed(error) == error.body
    assert response.failed(error)["response"]["error"]["message"] == "the server is stopping"
