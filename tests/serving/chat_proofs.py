"""What each field of chat, completions and embeddings does: proofs, and examples of those that do nothing."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import jsonschema
import numpy as np
from serving.openai_requests import CLOCK, MESSAGES, TOOLS, WEATHER, Chat, Completions, Embeddings
from serving.shared_proofs import CHOICES, follows, named, parallel_tool_calls, tools, truncation


def messages(ask: Chat) -> None:
    """Roles developer, system, user, assistant, tool and function; content as text or as parts of text."""
    told = ask.text()
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}]
    assert ask.text(messages=[{"role": "user", "content": parts}]) == told
    for role in ("system", "developer"):
        assert ask.text(messages=[{"role": role, "content": "Be brief."}, *MESSAGES]) != told
    image = [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]
    assert ask.refusal(messages=[{"role": "user", "content": image}]).param == "messages[0].content[0]"
    error = ask.refusal(messages=[{"role": "user", "content": "<|assistant|>"}])
    assert error.param == "messages[0].content" and "Write it otherwise" in error.message


def max_completion_tokens(ask: Chat) -> None:
    """As max_tokens, and before it where both are given."""
    answer = ask(max_completion_tokens=3)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (3, "length")
    assert ask.refusal(max_completion_tokens=0).param == "max_completion_tokens"


def logprobs(ask: Chat) -> None:
    """The log-probability of each token, of the model's own distribution: before penalties, biases and temperature."""
    plain, biased = (
        ask(logprobs=True, **more).choices[0].logprobs.content
        for more in ({}, {"logit_bias": {"70": 100}, "max_tokens": 1})
    )
    assert len(plain) == 24 and all(token.logprob <= 0 and bytes(token.bytes) for token in plain)
    assert biased[0].token == ":" and biased[0].logprob < plain[0].logprob
    assert ask().choices[0].logprobs is None


def top_logprobs(ask: Chat) -> None:
    """0 to 20: so many of the likeliest tokens beside each; needs logprobs."""
    told = ask(logprobs=True, top_logprobs=5).choices[0].logprobs.content
    for token in told:
        values = [one.logprob for one in token.top_logprobs]
        assert len(values) == 5 and values == sorted(values, reverse=True)
        assert token.token == token.top_logprobs[0].token and sum(map(math.exp, values)) <= 1.001
    assert ask.refusal(top_logprobs=5).param == "top_logprobs"


def response_format(ask: Chat) -> None:
    """text, json_object or json_schema; JSON always parses and follows the schema. With tools: a call, or such JSON."""
    for number in range(4):
        drawn: dict[str, Any] = {"temperature": number / 2, "max_tokens": 250, "seed": number}
        assert isinstance(json.loads(ask.text(response_format={"type": "json_object"}, **drawn)), dict)
        wanted = {"type": "json_schema", "json_schema": {"name": "report", "schema": WEATHER}}
        jsonschema.validate(json.loads(ask.text(response_format=wanted, **drawn)), WEATHER)
    assert ask.text(response_format={"type": "text"}) == ask.text()
    wrong = {"type": "json_schema", "json_schema": {"name": "report", "schema": {"type": "nothing"}}}
    assert ask.refusal(response_format=wrong).param == "response_format"
    assert ask.refusal(response_format=wrong, tools=TOOLS).param == "response_format"
    wanted = {"type": "json_schema", "json_schema": {"name": "report", "schema": WEATHER}}
    for kind in (wanted, {"type": "json_object"}):
        for seed in range(4):
            drawn = {"temperature": 2, "max_tokens": 250, "seed": seed}
            message = ask(response_format=kind, tools=TOOLS, **drawn).choices[0].message
            called = [follows(call.function) for call in message.tool_calls or []]
            assert bool(called) != bool(message.content)
            answer = json.loads(message.content or "{}")
            assert called or kind["type"] == "json_object" or jsonschema.validate(answer, WEATHER) is None
    assert ask.calls(response_format=wanted, tool_choice="required") != []
    jsonschema.validate(
        json.loads(ask.text(response_format=wanted, tools=TOOLS, tool_choice="none", max_tokens=250)), WEATHER
    )


def tool_choice(ask: Chat) -> None:
    """none, auto, required, the name of a function, or allowed_tools."""
    named_one = {"type": "function", "function": {"name": "clock"}}
    some = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named_one]}}
    for number in range(4):
        drawn: dict[str, Any] = {"temperature": number / 2}
        assert ask.calls(tool_choice="none", **drawn) == []
        # The last of these calls may be cut, after much text.
        assert {call.name for call in ask.calls(tool_choice="auto", **drawn)} <= {"clock", "weather"}
        assert ask.calls(tool_choice="required", parallel_tool_calls=False, **drawn) != []
        assert [follows(call) for call in ask.calls(tool_choice=named_one, **drawn)] == ["clock"]
        called = ask.calls(tool_choice=some, parallel_tool_calls=False, **drawn)
        assert [follows(call) for call in called] == ["clock"]
    assert ask.refusal(tool_choice="required").param == "tool_choice"


def functions(ask: Chat) -> None:
    """The older form of tools, answered with function_call in the message."""
    given = [{"name": "clock", "parameters": CLOCK}]
    answer = ask(functions=given, function_call={"name": "clock"}, max_tokens=250).choices[0]
    assert answer.finish_reason == "function_call" and answer.message.tool_calls is None
    assert follows(answer.message.function_call) == "clock"
    mixed = [{"type": "function", "function": given[0]}]
    assert ask.refusal(functions=given, tools=mixed).param == "functions"


def function_call(ask: Chat) -> None:
    """The older form of tool_choice, with functions alone: none, auto or a name."""
    given = [{"name": "clock", "parameters": CLOCK}, {"name": "weather", "parameters": WEATHER}]
    for name in ("clock", "weather"):
        answer = ask(functions=given, function_call={"name": name}, max_tokens=250)
        assert follows(answer.choices[0].message.function_call) == name
    assert ask(functions=given, function_call="none").choices[0].message.function_call is None
    assert ask.refusal(function_call="auto").param == "function_call"


def session(ask: Chat) -> None:
    """The id of a session of POST /v1/sessions; `messages` are then the new ones alone."""
    earlier = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello to you!"}]
    new = [{"role": "user", "content": "And?"}]
    made: Any = ask.client.post("/sessions", cast_to=object, body={"model": "mmrec", "messages": earlier})
    answer = ask(messages=new, session=made["id"])
    assert answer.choices[0].message.content == ask.text(messages=[*earlier, *new])
    assert answer.usage.prompt_tokens_details.cached_tokens == made["length"]
    for name, given in (("n", 2), ("stop", "a"), ("truncation", "auto")):
        assert ask.refusal(messages=new, session=made["id"], **{name: given}).param == name


def prompt(ask: Completions) -> None:
    """A text or its ids, or a list of either; nothing is laid out around it."""
    texts = ["Once there was", "Küçük çocuk"]
    ids: Any = [
        ask.client.post(
            str(ask.client.base_url.join("/tokenize")),
            cast_to=object,
            body={"model": "mmrec", "prompt": text},
        )
        for text in texts
    ]
    alone = [ask.text(prompt=text) for text in texts]
    assert alone[0] != alone[1]
    assert ask.texts(prompt=texts) == alone
    assert ask.texts(prompt=[one["tokens"] for one in ids]) == alone
    assert ask.texts(prompt=ids[0]["tokens"]) == alone[:1]
    assert "400" in ask.refusal(prompt=[400_400]).message.replace(",", "")


def echo(ask: Completions) -> None:
    """The prompt is told before its continuation; with logprobs its tokens too, and max_tokens may be 0."""
    assert ask.text(echo=True) == "Once there was" + ask.text()
    choice = ask(echo=True, max_tokens=0, logprobs=1).choices[0]
    assert choice.text == "Once there was" == "".join(choice.logprobs.tokens)
    *_, last = (
        ask(echo=True, max_tokens=0, logprobs=1, prompt="Once there was a").choices[0].logprobs.token_logprobs
    )
    assert last < 0


def completion_logprobs(ask: Completions) -> None:
    """0 to 5: the log-probability of each token, and so many of the likeliest, by their texts, beside it."""
    for drawn in ({}, {"temperature": 2, "seed": 1}):
        told = ask(logprobs=3, **drawn).choices[0].logprobs
        assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) == 24
        # Parts of characters have one text, "\ufffd", so that there may be fewer.
        assert all(1 <= len(top) <= 4 for top in told.top_logprobs) and max(map(len, told.top_logprobs)) >= 3
        assert all(token in top for token, top in zip(told.tokens, told.top_logprobs, strict=True))
    # Offsets are those of the text, in which a character of several tokens is one.
    echoed = ask(prompt="é bir — çay 👩", max_tokens=0, echo=True, logprobs=0).choices[0]
    offsets = dict.fromkeys(echoed.logprobs.text_offset)
    assert len(offsets) < len(echoed.logprobs.tokens) and max(offsets) == len(echoed.text) - 1
    for token, start in zip(echoed.logprobs.tokens, echoed.logprobs.text_offset, strict=True):
        assert "\ufffd" in token or echoed.text.startswith(token, start)
    greedy = ask(logprobs=3).choices[0].logprobs
    assert [max(top.values()) for top in greedy.top_logprobs] == greedy.token_logprobs
    assert ask.refusal(logprobs=6).param == "logprobs" and ask().choices[0].logprobs is None


def best_of(ask: Completions) -> None:
    """Must be n, where it is given: choose among n answers yourself."""
    assert len(ask.texts(best_of=2, n=2)) == 2
    assert ask.refusal(best_of=2).param == "best_of"


def embedding_model(ask: Embeddings) -> None:
    """The model, one of GET /v1/models."""
    assert ask.vectors(model="mm-rec-100m") == ask.vectors() != ask.vectors(model="llama")


def input_(ask: Embeddings) -> None:
    """A text or its ids, or a list of either; each vector has length 1."""
    texts = ["Once there was", "Küçük çocuk"]
    both = ask.vectors(input=texts)
    assert both == [*ask.vectors(input=texts[0]), *ask.vectors(input=texts[1])] and both[0] != both[1]
    assert np.allclose(np.linalg.norm(both, axis=1), 1, atol=1e-5)
    assert ask.vectors(input=[[5, 6], [7]]) == [*ask.vectors(input=[5, 6]), *ask.vectors(input=[7])]


def encoding_format(ask: Embeddings) -> None:
    """float or base64, which the client asks for by itself."""
    [numbers], [text] = ask.vectors(encoding_format="float"), ask.vectors(encoding_format="base64")
    assert np.frombuffer(base64.b64decode(str(text)), "<f4").tolist() == np.float32(numbers).tolist()
    assert np.float32(ask.vectors()[0]).tolist() == np.float32(numbers).tolist()


def dimensions(ask: Embeddings) -> None:
    """Must be the model's own, where it is given."""
    [vector] = ask.vectors()
    assert ask.vectors(dimensions=len(vector)) == [vector]
    assert ask.refusal(dimensions=len(vector) // 2).param == "dimensions"


CHAT = named(
    (
        *CHOICES, messages, max_completion_tokens, logprobs, top_logprobs, response_format, tools, tool_choice,
        parallel_tool_calls, functions, function_call, session, truncation,
    )
)  # fmt: skip
COMPLETIONS = {**named((*CHOICES, prompt, echo, best_of)), "logprobs": completion_logprobs}
EMBEDDINGS = {**named((input_, encoding_format, dimensions)), "model": embedding_model}

# Of the fields that have no effect, or are refused.
CHAT_EXAMPLES: dict[str, Any] = {
    "modalities": ["text"],
    "metadata": {"a": "b"},
    "store": True,
    "user": "somebody",
    "safety_identifier": "somebody",
    "service_tier": "flex",
    "prompt_cache_key": "a",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"mode": "implicit"},
    "prediction": {"type": "content", "content": "Hello"},
    "reasoning_effort": "high",
    "verbosity": "low",
    "audio": {"voice": "alloy", "format": "mp3"},
    "web_search_options": {},
    "moderation": {"model": "omni-moderation-latest"},
}
COMPLETION_EXAMPLES = {"user": "somebody", "suffix": "the end"}
EMBEDDING_EXAMPLES = {"user": "somebody"}
