"""Proofs of the fields that several routes have: each function is named like its field, and says what that does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import jsonschema
import openai
import pytest
from serving.openai_requests import SCHEMAS, Chat, Choices, Responses, Texts

COLON = "70"  # the id of a token that is one sign alone


def named(proofs: Iterable[Callable[[Any], None]]) -> dict[str, Callable[[Any], None]]:
    """Proofs by the fields that they prove; a line below ends the name that would be Python's own."""
    return {proof.__name__.rstrip("_"): proof for proof in proofs}


def model(ask: Texts) -> None:
    """The model, one of GET /v1/models; MODEL:ADAPTER is the model with that adapter."""
    assert ask(model="mm-rec-100m").model == "mm-rec-100m"
    assert ask.text(model="mm-rec-100m") == ask.text() != ask.text(model="llama")
    with pytest.raises(openai.NotFoundError, match="there are mmrec, llama, mm-rec-100m") as caught:
        ask(model="gpt-4o")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


def temperature(ask: Texts) -> None:
    """0 to 2, by default 1; 0 always takes the likeliest token."""
    assert ask.text() == ask.text() != ask.text(temperature=2)
    assert ask.text(temperature=None) != ask.text()
    assert ask.refusal(temperature=2.1).param == "temperature"


def top_p(ask: Texts) -> None:
    """0 to 1, by default 1; 0 is the likeliest token alone."""
    assert ask.text(temperature=2, top_p=0) == ask.text() != ask.text(temperature=2, top_p=1)
    assert ask.refusal(top_p=1.1).param == "top_p"


def top_k(ask: Texts) -> None:
    """So many of the likeliest tokens are left to choose from; 0, the default, leaves all."""
    assert ask.text(temperature=2, top_k=1) == ask.text() != ask.text(temperature=2, top_k=0)
    assert ask.refusal(top_k=-1).param == "top_k"


def min_p(ask: Texts) -> None:
    """Tokens with less than this share of the likeliest one's probability are left out."""
    assert ask.text(temperature=2, min_p=1) == ask.text() != ask.text(temperature=2, min_p=0)
    assert ask.refusal(min_p=2).param == "min_p"


def repetition_penalty(ask: Texts) -> None:
    """Above 1 makes the tokens of the last 256 less likely."""
    assert ask.text(repetition_penalty=10) != ask.text() == ask.text(repetition_penalty=1)
    assert ask.refusal(repetition_penalty=0).param == "repetition_penalty"


def frequency_penalty(ask: Choices) -> None:
    """Taken off a token's logit for each time that it was written in this answer."""
    colons = {"logit_bias": {COLON: 100}, "max_tokens": 80}
    assert ask.text(**colons) == ":" * 80
    assert re.fullmatch(":{20,79}[^:].*", ask.text(**colons, frequency_penalty=2), re.DOTALL)
    assert ask.refusal(frequency_penalty=3).param == "frequency_penalty"


def presence_penalty(ask: Choices) -> None:
    """Taken off a token's logit once, where it was written in this answer."""
    assert ask.text(logit_bias={COLON: 100}, max_tokens=80, presence_penalty=2) == ":" * 80
    assert ask.text(presence_penalty=2, max_tokens=60) != ask.text(max_tokens=60)
    assert ask.refusal(presence_penalty=-3).param == "presence_penalty"


def logit_bias(ask: Choices) -> None:
    """Added to the logits of these token ids; 100 forces a token, −100 bars it."""
    assert ask.text(logit_bias={COLON: 100}) == ":" * 24
    assert ":" not in ask.text(logit_bias={COLON: -100}, temperature=2, max_tokens=200)
    error = ask.refusal(logit_bias={"99999": 1})
    assert error.param == "logit_bias" and "99999" in error.message


def seed(ask: Choices) -> None:
    """Exact: the same request with the same seed has the same answer, whatever else is being answered."""
    assert ask.text(temperature=1, seed=7) == ask.text(temperature=1, seed=7)
    assert ask.text(temperature=1, seed=7) != ask.text(temperature=1, seed=8)


def n(ask: Choices) -> None:
    """So many answers, at most 8; with a seed the second is that of the seed + 1, and so on."""
    texts = ask.texts(temperature=1, seed=7, n=3)
    assert texts == [ask.text(temperature=1, seed=number) for number in (7, 8, 9)]
    assert ask.refusal(n=9).param == "n"


def stop(ask: Choices) -> None:
    """One string or up to 4; the answer ends before the first of them, also where that begins within a token."""
    text = ask.text(max_tokens=80)
    found = re.search("[a-z]{3}", text[4:])
    assert found is not None
    end = found[0]
    for given in (end, ["never written", end]):
        choice = ask(max_tokens=80, stop=given).choices[0]
        assert choice.finish_reason == "stop"
        assert ask.text(max_tokens=80, stop=given).rstrip() == text.partition(end)[0].rstrip()
    assert ask.refusal(stop=[str(number) for number in range(5)]).param == "stop"


def max_tokens(ask: Choices) -> None:
    """The most tokens of the answer; a request for more than the server's own limit is refused."""
    answer = ask(max_tokens=3)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (3, "length")
    assert ask.refusal(max_tokens=100_000).param == "max_tokens"


def stream(ask: Texts) -> None:
    """Server-sent events, closed by `data: [DONE]` (responses: by the last event)."""
    pieces = []
    for event in ask(stream=True):
        if isinstance(ask, Responses):
            pieces += [event.delta] if event.type == "response.output_text.delta" else []
        elif isinstance(ask, Chat):
            pieces += [choice.delta.content or "" for choice in event.choices]
        else:
            pieces += [choice.text for choice in event.choices]
    assert "".join(pieces) == ask.text()
    assert len([piece for piece in pieces if piece]) > 1


def stream_options(ask: Choices) -> None:
    """With `stream` alone. `include_usage`: a last chunk without choices says how many tokens there were."""
    *chunks, last = ask(stream=True, stream_options={"include_usage": True})
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert last.choices == [] and last.usage.completion_tokens == 24
    assert all(chunk.usage is None and chunk.choices for chunk in ask(stream=True))
    assert ask.refusal(stream_options={"include_usage": True}).param == "stream_options"


def follows(call: Any) -> str:
    """The name of a function that was called; its arguments must be those of its schema."""
    jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
    name: str = call.name
    return name


def tools(ask: Chat | Responses) -> None:
    """Functions, and no other type, that may be called; arguments are JSON of the schema `parameters`, always."""
    for number in range(4):
        calls = ask.calls(tool_choice="required", temperature=number / 2, parallel_tool_calls=False)
        assert [follows(call) in SCHEMAS for call in calls] == [True]
    unknown = [{"type": "web_search"}]
    assert (ask.refusal(tools=unknown).param or "").startswith("tools[0]")


def parallel_tool_calls(ask: Chat | Responses) -> None:
    """False: at most one call in an answer; otherwise there may be several."""
    several = {"tool_choice": "required", "parallel_tool_calls": True}
    assert any(len(ask.calls(**several, temperature=1.0)) > 1 for _ in range(20))
    for number in range(6):
        drawn = {"tool_choice": "required", "temperature": number / 3}
        assert len(ask.calls(**drawn, parallel_tool_calls=False)) == 1
    if isinstance(ask, Chat):  # responses say it of themselves without tools too
        assert ask.refusal(parallel_tool_calls=True).param == "parallel_tool_calls"


def truncation(ask: Chat | Responses) -> None:
    """`auto`: where the context is full, whole turns are dropped, the oldest first; `disabled`: 400 instead."""
    field = "messages" if isinstance(ask, Chat) else "input"
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "x " * 200},
        {"role": "assistant", "content": "y " * 5},
        {"role": "user", "content": "z " * 100},
    ]
    error = ask.refusal(model="llama", truncation="disabled", **{field: turns})
    assert (error.code, error.param) == ("context_length_exceeded", field) and "512 tokens" in error.message
    kept = ask.text(model="llama", **{field: [turns[0], turns[-1]]})
    assert ask.text(model="llama", truncation="auto", **{field: turns}) == kept


SAMPLING = (model, temperature, top_p, top_k, min_p, repetition_penalty, stream)
CHOICES = (
    *SAMPLING, frequency_penalty, presence_penalty, logit_bias, seed, n, stop, max_tokens, stream_options,
)  # fmt: skip
