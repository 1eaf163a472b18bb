"""What one request may hold and take: counts that are checked before what they count, tokens, nesting, seconds."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pydantic
import pytest
from serving.server import Server, small_model
from transformers import PreTrainedTokenizerBase
from waiting import LONGEST, until

from mm_rec.inference.scheduler import Scheduler
from mm_rec.serving.context import RequestLimits
from mm_rec.serving.protocol.request_model import MAX_JSON_DEPTH, RequestModel, require_shallow
from mm_rec.serving.protocol.response_schemas import ResponseRequest
from mm_rec.serving.protocol.schemas import (
    MAX_IDS,
    MAX_MESSAGES,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
)

CHAT, COMPLETE, RESPOND, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"
USER = {"role": "user", "content": "Hello!"}
FUNCTION = {"type": "function", "function": {"name": "a"}}
MOST = 100  # tokens of all prompts of a request


def nested(depth: int) -> Any:
    """A JSON object within as many others."""
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


def post(server: Server, path: str, **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json={"model": "mmrec", **body}, timeout=LONGEST)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    return found


# The schema, a field, what is too much for it, and the limit.
TOO_MANY: list[tuple[type[RequestModel], str, Any, str]] = [
    (ChatRequest, "messages", [None] * (MAX_MESSAGES + 1), "2,048 messages"),
    (ChatRequest, "tools", [None] * 129, "128 tools"),
    (ChatRequest, "functions", [None] * 129, "128 functions"),
    (ChatRequest, "metadata", dict.fromkeys(map(str, range(17)), 1), "16 pairs"),
    (ChatRequest, "metadata", {"a" * 65: "b"}, "64 characters"),
    (ChatRequest, "metadata", {"a": "b" * 513}, "512"),
    (ChatRequest, "logit_bias", dict.fromkeys(map(str, range(1025)), None), "1,024 biases"),
    (ChatRequest, "stop", [None] * 5, "4 texts"),
    (ChatRequest, "user", "a" * 65, "64 characters"),
    (ChatRequest, "safety_identifier", "a" * 65, "64 characters"),
    (ChatRequest, "prompt_cache_key", "a" * 65, "64 characters"),
    (ResponseRequest, "input", [None] * (MAX_MESSAGES + 1), "2,048 items"),
    (ResponseRequest, "tools", [None] * 129, "128 tools"),
    (CompletionRequest, "prompt", [None] * 2049, "2,048 texts"),
    (EmbeddingRequest, "input", [None] * 2049, "2,048 texts"),
]


@pytest.mark.parametrize(("schema", "field", "value", "limit"), TOO_MANY)
def test_too_many_are_refused_before_one_of_them_is_read(
    schema: type[RequestModel], field: str, value: Any, limit: str
) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        schema.model_validate({"model": "m", field: value})
    found = [error for error in caught.value.errors() if error["loc"][0] == field]
    assert any(limit in error["msg"] for error in found)
    assert len(found) <= 2 and all(
        len(error["loc"]) <= 2 for error in found
    )  # of the list, and not of its items


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (ChatRequest, {"messages": [{}] * MAX_MESSAGES}),
        (ChatRequest, {"messages": [{**USER, "content": [{}] * 64}]}),
        (ChatRequest, {"messages": [USER], **{f"field{number}": 1 for number in range(100_000)}}),
        (ChatRequest, {"messages": [{**USER, **{f"field{number}": 1 for number in range(100_000)}}]}),
        (ResponseRequest, {"input": [{"type": "nothing"}] * MAX_MESSAGES}),
        (CompletionRequest, {"prompt": [None] * MAX_IDS}),
        (EmbeddingRequest, {"input": [[None] * 1000] * 2048}),
    ],
)
def test_a_body_of_wrong_things_is_read_to_the_first(
    schema: type[RequestModel], body: dict[str, Any]
) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        schema.model_validate({"model": "m", **body})
    assert caught.value.error_count() <= 3  # a union has some for each of its members


def test_json_has_a_depth() -> None:
    assert require_shallow(nested(MAX_JSON_DEPTH)) and require_shallow(1) == 1
    for deep in (nested(MAX_JSON_DEPTH + 1), [nested(MAX_JSON_DEPTH)], nested(100_000)):
        with pytest.raises(ValueError, match="nested more than 128 deep; make it flatter"):
            require_shallow(deep)


def call(depth: int) -> dict[str, Any]:
    """The call of a function with arguments of that depth."""
    return {"name": "a", "arguments": json.dumps(nested(depth))}


def made(depth: int) -> list[dict[str, Any]]:
    """A conversation with such a call in it."""
    calls = [{"id": "1", "type": "function", "function": call(depth)}]
    return [
        USER,
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
    ]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": made(600)}, "messages[1].tool_calls"),
        (CHAT, {"messages": [USER], "tools": [{**FUNCTION, "function": {"name": "a", "parameters": nested(200)}}]},
         "tools[0].function.parameters"),
        (CHAT, {"messages": [USER], "prediction": nested(200)}, "prediction"),
        (RESPOND, {"input": [{"type": "function_call", "call_id": "1", **call(600)}]}, "input[0]"),
        (RESPOND, {"input": "a", "text": {"format": {"type": "json_schema", "name": "a", "schema": nested(200)}}},
         "text.format.schema"),
    ],
)  # fmt: skip
def test_what_is_nested_too_deep_is_refused_and_the_log_stays_small(
    server: Server, path: str, body: dict[str, Any], param: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        answer = post(server, path, **body)
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (400, param) and "128 deep" in error["message"]
    assert sum(len(record.getMessage()) for record in caplog.records) < 1000


def test_arguments_as_deep_as_may_be_are_read(server: Server) -> None:
    answer = post(server, CHAT, messages=made(MAX_JSON_DEPTH), max_tokens=1)
    assert answer.status_code == 200, answer.text


@pytest.fixture(scope="module")
def narrow(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that reads few tokens."""
    model = small_model("mmrec", chat_tokenizer, scheduler=Scheduler())
    limits = RequestLimits(max_tokens=64, max_prompt_tokens=MOST)
    running = Server([model], tmp_path_factory.mktemp("narrow"), limits=limits)
    yield running
    running.stop()


IDS = [[5] * 30] * 4  # each of them fits
LONG = "bir iki " * MOST
MUCH = "bir iki " * 5000


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": [{"role": "user", "content": LONG}]}, "messages"),
        (RESPOND, {"input": LONG}, "input"),
        (COMPLETE, {"prompt": LONG}, "prompt"),
        (COMPLETE, {"prompt": IDS, "max_tokens": 1}, "prompt"),
        (COMPLETE, {"prompt": IDS, "max_tokens": 0, "echo": True, "logprobs": 1}, "prompt"),
        (EMBED, {"input": LONG}, "input"),
        (EMBED, {"input": IDS}, "input"),
        ("/v1/sessions", {"messages": [{"role": "user", "content": LONG}]}, "messages"),
        ("/tokenize", {"prompt": LONG}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": LONG}]}, "messages"),
        ("/detokenize", {"tokens": [5] * (MOST + 1)}, "tokens"),
    ],
)
def test_every_route_reads_so_many_tokens_in_all(narrow: Server, path: str, body: Any, param: str) -> None:
    answer = post(narrow, path, **body)
    error = error_of(answer)
    assert (answer.status_code, error["param"], error["code"]) == (400, param, "context_length_exceeded")
    assert "100 are the most. Send less" in error["message"]


def test_what_fits_in_all_is_read(narrow: Server) -> None:
    assert post(narrow, COMPLETE, prompt=IDS[:3], max_tokens=1).status_code == 200
    assert post(narrow, EMBED, input=IDS[:3]).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [USER]}),
        (CHAT, {"messages": [USER], "stream": True}),
        (CHAT, {"messages": [USER], "n": 2}),
        (RESPOND, {"input": "a"}),
        (COMPLETE, {"prompt": ["a", "b"]}),
        (EMBED, {"input": ["a", "b"]}),
        ("/v1/sessions", {"messages": [USER]}),
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [5]}),
    ],
)
def test_every_route_has_so_much_time(
    narrow: Server, path: str, body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrow.context, "limits", replace(narrow.context.limits, timeout_seconds=0.0))
    answer = post(narrow, path, **body)
    assert (answer.status_code, error_of(answer)["code"]) == (408, "timeout")
    scheduler = narrow.context.registry.models[0].scheduler
    until(lambda: scheduler.num_running == scheduler.num_waiting == 0)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": MUCH}], "n": 2}),
        (EMBED, {"input": MUCH}),
        ("/v1/sessions", {"messages": [{"role": "user", "content": MUCH}]}),
    ],
)
def test_what_was_read_counts_though_nobody_waited_for_the_answer(
    server: Server, path: str, body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    scheduler = server.context.registry.models[0].scheduler
    monkeypatch.setattr(
        server.context, "record_usage", lambda owner, variant, usage: counted.append(usage.prompt_tokens)
    )
    step = scheduler.step

    def slowly() -> None:
        step()
        time.sleep(0.05)  # after each chunk of the prompt, so that the client leaves amid them

    monkeypatch.setattr(scheduler, "step", slowly)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            server.url + path, json={"model": "mmrec", **body}, timeout=httpx.Timeout(LONGEST, read=0.5)
        )
    until(lambda: bool(counted))
    until(lambda: scheduler.num_running == scheduler.num_waiting == 0)
    [read] = counted
    tokenizer = server.context.registry.find("mmrec").model.tokenizer
    assert 0 < read < len(tokenizer.encode(MUCH))
