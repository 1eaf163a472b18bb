"""What each field of responses does: proofs, and examples of those that do nothing."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import openai
import pytest
from serving.openai_requests import RESPONSE_TOOLS, WEATHER, Responses
from serving.shared_proofs import SAMPLING, follows, named, parallel_tool_calls, tools, truncation


def input_(ask: Responses) -> None:
    """A text, or up to 2,048 items: message, reasoning, function_call, function_call_output, item_reference."""
    message = {"role": "user", "content": [{"type": "input_text", "text": "Hello!"}]}
    assert ask.text(input=[message]) == ask.text() != ask.text(input="Goodbye!")
    call = {"type": "function_call", "call_id": "call_1", "name": "clock", "arguments": '{"zone": "UTC"}'}
    result = {"type": "function_call_output", "call_id": "call_1", "output": "12:30"}
    assert ask.text(input=[message, call, result]) != ask.text(
        input=[message, call, {**result, "output": "1:15"}]
    )
    image = [{"type": "input_image", "image_url": "https://example.org/a.png"}]
    assert ask.refusal(input=[{"role": "user", "content": image}]).param == "input[0].content[0]"
    first = ask()
    reference = {"type": "item_reference", "id": first.output[0].id}
    told = [message, {"role": "assistant", "content": first.output_text}, message]
    assert ask.text(input=[message, reference, message]) == ask.text(input=told)
    with pytest.raises(openai.NotFoundError, match="send the item itself") as caught:
        ask(input=[{"type": "item_reference", "id": "msg_1"}])
    assert caught.value.param == "input[0]"


def instructions(ask: Responses) -> None:
    """A system message of this response alone; those that go on from it do not have it."""
    brief = {"role": "system", "content": "Be brief."}
    with_them = ask.text(input=[brief, {"role": "user", "content": "Hello!"}])
    assert ask.text(instructions="Be brief.") == with_them != ask.text()


def previous_response_id(ask: Responses) -> None:
    """Goes on from a response that was kept; what the model read then is not read again."""
    first = ask()
    second = ask(input="And?", previous_response_id=first.id)
    whole = [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And?"},
    ]
    assert second.output_text == ask.text(input=whole) != ask.text(input="And?")
    with pytest.raises(openai.NotFoundError) as caught:
        ask(previous_response_id="resp_none")
    assert caught.value.param == "previous_response_id"


def max_output_tokens(ask: Responses) -> None:
    """The most tokens of the answer; one that is cut has the status incomplete."""
    answer = ask(max_output_tokens=3)
    assert (answer.usage.output_tokens, answer.status) == (3, "incomplete")
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert ask.refusal(max_output_tokens=100_000).param == "max_output_tokens"


def tool_choice(ask: Responses) -> None:
    """none, auto, required, the name of a function, or allowed_tools."""
    clock = {"type": "function", "name": "clock"}
    some = {"type": "allowed_tools", "mode": "required", "tools": [clock]}
    for number in range(4):
        drawn: dict[str, Any] = {"temperature": number / 2}
        assert ask.calls(tool_choice="none", **drawn) == []
        # The last of these calls may be cut, after much text.
        assert {call.name for call in ask.calls(tool_choice="auto", **drawn)} <= {"clock", "weather"}
        assert [follows(call) for call in ask.calls(tool_choice=clock, **drawn)] == ["clock"]
        called = ask.calls(tool_choice=some, parallel_tool_calls=False, **drawn)
        assert [follows(call) for call in called] == ["clock"]
    assert ask.refusal(tool_choice="required").param == "tool_choice"


def text(ask: Responses) -> None:
    """`format`: text, json_object or json_schema, as response_format in chat; with tools a call, or such JSON."""
    wanted = {"format": {"type": "json_schema", "name": "report", "schema": WEATHER}}
    for number in range(4):
        drawn: dict[str, Any] = {"temperature": number / 2, "max_output_tokens": 250}
        jsonschema.validate(json.loads(ask.text(text=wanted, **drawn)), WEATHER)
        [*calls, last] = ask(text=wanted, tools=RESPONSE_TOOLS, **drawn).output
        assert all(follows(call) for call in calls)
        assert last.type == "message" or follows(last)
        assert (
            last.type != "message" or jsonschema.validate(json.loads(last.content[0].text), WEATHER) is None
        )
    assert ask.calls(text=wanted, tool_choice="required") != []
    some = ask.text(text={"format": {"type": "json_object"}}, max_output_tokens=250)
    assert isinstance(json.loads(some), dict)
    assert ask.text(text={"format": {"type": "text"}}) == ask.text()


def include(ask: Responses) -> None:
    """message.output_text.logprobs: the log-probability of each token. reasoning.encrypted_content changes nothing."""
    [part] = ask(include=["message.output_text.logprobs"]).output[0].content
    assert len(part.logprobs) == 24 and all(token.logprob <= 0 for token in part.logprobs)
    assert not ask().output[0].content[0].logprobs
    assert ask.text(include=["reasoning.encrypted_content"]) == ask.text()
    assert ask.refusal(include=["web_search_call.results"]).param == "include[0]"


def top_logprobs(ask: Responses) -> None:
    """0 to 20: so many of the likeliest tokens beside each token's log-probability."""
    [part] = ask(top_logprobs=3).output[0].content
    assert [len(token.top_logprobs) for token in part.logprobs] == [3] * 24
    assert ask.refusal(top_logprobs=21).param == "top_logprobs"


def metadata(ask: Responses) -> None:
    """Given back with the response; at most 16 pairs, of keys up to 64 and values up to 512 characters."""
    assert ask(metadata={"a": "b"}).metadata == {"a": "b"}
    for wrong in ({str(key): "" for key in range(17)}, {"a" * 65: ""}, {"a": "b" * 513}):
        assert ask.refusal(metadata=wrong).param == "metadata"


def store(ask: Responses) -> None:
    """Responses are kept, to be gone on from and fetched; false keeps nothing."""
    assert ask.client.responses.retrieve(ask().id).output_text == ask.text()
    unkept = ask(store=False).id
    with pytest.raises(openai.NotFoundError):
        ask.client.responses.retrieve(unkept)
    with pytest.raises(openai.NotFoundError):
        ask(previous_response_id=unkept)


RESPONSES = named(
    (
        *SAMPLING, input_, instructions, previous_response_id, max_output_tokens, tools, tool_choice,
        parallel_tool_calls, text, include, top_logprobs, metadata, store, truncation,
    )
)  # fmt: skip

# Of the fields that have no effect, or are refused.
RESPONSE_EXAMPLES: dict[str, Any] = {
    "user": "somebody",
    "safety_identifier": "somebody",
    "service_tier": "flex",
    "prompt_cache_key": "a",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"mode": "implicit"},
    "reasoning": {"effort": "high"},
    "stream_options": {"include_obfuscation": True},
    "max_tool_calls": 3,
    "background": True,
    "background_options": {"completion_window": "2h"},
    "conversation": "conv_1",
    "prompt": {"id": "pmpt_1"},
    "context_management": [{"type": "compaction"}],
    "moderation": {"model": "omni-moderation-latest"},
    "access_programs": {"cyber": "standard"},
    "image": {"context_compression": "auto"},
}
