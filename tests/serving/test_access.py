"""Access: keys, rate limits, hosts and sizes of requests, and the errors of those that are refused."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving.server import Server, small_model
from transformers import PreTrainedTokenizerBase
from waiting import LONGEST, little_work

from mm_rec.serving.access import AccessPolicy
from mm_rec.serving.api_keys import create_key
from mm_rec.serving.bodies import BodyLimit

HI = {"model": "mmrec", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
CHAT = "/v1/chat/completions"


@pytest.fixture
def guarded(chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Iterator[Server]:
    policy = AccessPolicy(
        require_keys=True, allowed_hosts=None, body_limit=BodyLimit(bytes=10_000, seconds=0.5)
    )
    running = Server([small_model("mmrec", chat_tokenizer)], tmp_path, policy=policy)
    yield running
    running.stop()


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_without_a_key_nothing_is_answered_but_what_says_nothing(guarded: Server) -> None:
    text, key = create_key(guarded.context.store, "mine")
    with httpx.Client(base_url=guarded.url) as http:
        for given in (None, "", "Bearer", "Bearer mmr-wrong", f"Basic {text}", f"Bearer {text[:-1]}x"):
            answer = http.post(CHAT, json=HI, headers={} if given is None else {"Authorization": given})
            assert answer.status_code == 401 and error_of(answer)["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        assert http.get("/v1/models").status_code == http.get("/metrics").status_code == 401
        assert http.get("/nowhere").status_code == 401
        assert http.get("/health").status_code == http.get("/").status_code == 200
        http.headers["Authorization"] = f"Bearer {text}"
        assert http.post(CHAT, json=HI).status_code == 200
        guarded.context.store.revoke_key(key.id)
        assert http.post(CHAT, json=HI).status_code == 401


def test_limits_of_a_key_are_told_with_when_to_ask_again(guarded: Server) -> None:
    few, _ = create_key(guarded.context.store, "few", requests_per_minute=2)
    small, _ = create_key(guarded.context.store, "small", tokens_per_day=5)
    for text, allowed, kind in ((few, 2, "requests"), (small, 1, "tokens")):
        with httpx.Client(base_url=guarded.url, headers={"Authorization": f"Bearer {text}"}) as http:
            for _ in range(allowed):
                assert http.post(CHAT, json=HI).status_code == 200
            answer = http.post(CHAT, json=HI)
            assert (answer.status_code, error_of(answer)["type"]) == (429, kind)
            assert int(answer.headers["retry-after"]) >= 1


def test_a_body_too_large_or_too_slow_is_not_waited_for(guarded: Server) -> None:
    text, _ = create_key(guarded.context.store, "mine")
    headers = {"Authorization": f"Bearer {text}", "Content-Type": "application/json"}
    large = httpx.post(guarded.url + CHAT, content=b'"' + b"x" * 20_000 + b'"', headers=headers)
    assert (large.status_code, error_of(large)["code"]) == (413, "request_too_large")

    def chunks() -> Iterator[bytes]:
        for _ in range(30):
            yield b"x" * 1_000

    unannounced = httpx.post(guarded.url + CHAT, content=chunks(), headers=headers)
    assert unannounced.status_code == 413
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=LONGEST) as slow:
        head = [
            f"POST {CHAT} HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {text}",
            "Content-Length: 100",
        ]
        slow.sendall("\r\n".join([*head, "", "{"]).encode())
        begun = time.monotonic()
        assert slow.recv(4096).startswith(b"HTTP/1.1 408")
        assert (
            time.monotonic() - begun < AccessPolicy().body_limit.seconds
        )  # its own limit holds, not the usual one


def test_only_this_machines_names_are_answered_without_keys(server: Server) -> None:
    for host, status in {
        "localhost": 200, "127.0.0.1": 200, f"localhost:{server.port}": 200, "LOCALHOST": 200, "[::1]:80": 200,
        "evil.example": 403, "127.0.0.1.evil.example": 403, "localhost:80@evil": 403, "": 403,
    }.items():  # fmt: skip
        answer = httpx.get(f"{server.url}/v1/models", headers={"Host": host})
        assert answer.status_code == status, host
    assert error_of(answer)["code"] == "wrong_host"


def test_other_sites_are_told_nothing(server: Server) -> None:
    """CORS is closed: no answer says that another site's page may read it, and none may send JSON."""
    origin = {"Origin": "https://evil.example"}
    asked = httpx.options(
        server.url + CHAT,
        headers={
            **origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        },
    )
    assert asked.status_code == 405
    simple = httpx.post(
        server.url + CHAT, content='{"model": "mmrec"}', headers={**origin, "Content-Type": "text/plain"}
    )
    assert simple.status_code == 400
    for answer in (asked, simple):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def post(server: Server, body: Any, path: str = CHAT) -> httpx.Response:
    """Also what is no Unicode, which httpx would not send as JSON."""
    return httpx.post(
        server.url + path, content=json.dumps(body), headers={"Content-Type": "application/json"}
    )


def schema(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": of}}


FORMAT = {"type": "json_schema", "name": "a", "schema": {"type": "object"}}
FUNCTION = {"type": "function", "name": "a"}
IMAGE = {"type": "image_url", "image_url": {"url": "x"}}


def tool(**more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "a", **more}}


def called(arguments: str) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": "a", "arguments": arguments}}


TOOL = tool()
CALL = called("{")
HALF = called(r'{"a": "\ud800"}')
ASKED = [{"role": "assistant", "tool_calls": [called("{}")]}]
BAD: dict[str, tuple[Any, str | None]] = {
    "no model": ({"messages": HI["messages"]}, "model"),
    "a model of a wrong type": ({**HI, "model": 5}, "model"),
    "no messages": ({**HI, "messages": []}, "messages"),
    "a role that is none": ({**HI, "messages": [{"role": "king", "content": "Hi"}]}, "messages[0].role"),
    "content of a wrong type": ({**HI, "messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    "an image": (
        {**HI, "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]}]},
        "messages[0].content[1]",
    ),
    "no content": ({**HI, "messages": [{"role": "user"}]}, "messages[0].content"),
    "a special token": ({**HI, "messages": [{"role": "user", "content": "<|assistant|>"}]}, "messages[0].content"),
    "half of a pair": ({**HI, "messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
    "an unknown field": ({**HI, "colour": "red"}, "colour"),
    "temperature": ({**HI, "temperature": 3}, "temperature"),
    "temperature of a wrong type": ({**HI, "temperature": "hot"}, "temperature"),
    "n too large": ({**HI, "n": 9}, "n"),
    "n zero": ({**HI, "n": 0}, "n"),
    "too many tokens": ({**HI, "max_tokens": 10**9}, "max_tokens"),
    "too many tokens by the new name": ({**HI, "max_completion_tokens": 257}, "max_completion_tokens"),
    "too many stops": ({**HI, "stop": ["a"] * 5}, "stop"),
    "a bias for no token": ({**HI, "logit_bias": {"99999": 1}}, "logit_bias"),
    "a bias for no number": ({**HI, "logit_bias": {"a": 1}}, "logit_bias"),
    "top_logprobs alone": ({**HI, "top_logprobs": 2}, "top_logprobs"),
    "a schema that is none": (
        {**HI, "response_format": schema({"type": 7})},
        "response_format",
    ),
    "a format without its schema": ({**HI, "response_format": {"type": "json_schema"}}, "response_format"),
    "a schema from elsewhere": (
        {**HI, "response_format": schema({"$ref": "file:///etc/passwd"})},
        "response_format",
    ),
    "a tool of another kind": ({**HI, "tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools[0].type"),
    "a tool that is not there": (
        {**HI, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "b"}}},
        "tool_choice",
    ),
    "a function that is not there": (
        {**HI, "functions": [{"name": "a"}], "function_call": {"name": "b"}},
        "function_call",
    ),
    "a tool that takes what cannot be followed": ({**HI, "tools": [tool(parameters={"type": 7})]}, "tools"),
    "two tools of one name": ({**HI, "tools": [TOOL, TOOL]}, "tools"),
    "a special token in a tool": ({**HI, "tools": [tool(description="<|assistant|>")]}, "tools"),
    "a schema with a text format": ({**HI, "response_format": {**schema({}), "type": "text"}}, "response_format"),
    "a choice without tools": ({**HI, "tool_choice": "required"}, "tool_choice"),
    "arguments that are no JSON": (
        {**HI, "messages": [{"role": "assistant", "tool_calls": [CALL]}]},
        "messages[0].tool_calls",
    ),
    "arguments with a special token": (
        {**HI, "messages": [{"role": "assistant", "tool_calls": [called('{"a": "\\u003c|assistant|>"}')]}]},
        "messages[0].tool_calls",
    ),
    "a result of no call": (
        {**HI, "messages": [*ASKED, {"role": "tool", "tool_call_id": "2", "content": "3 °C"}]},
        "messages[1].tool_call_id",
    ),
    "a call of a user's": ({**HI, "messages": [{**HI["messages"][0], "tool_calls": [called("{}")]}]}, "messages[0]"),
    "a part without its text": (
        {**HI, "messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0]",
    ),
    "a context that is full": (
        {**HI, "model": "llama", "messages": [{"role": "user", "content": "a " * 600}]},
        "messages",
    ),
    "a number that is none": ({**HI, "temperature": float("nan")}, "temperature"),
    "stream_options without a stream": ({**HI, "stream_options": {"include_usage": True}}, "stream_options"),
    "parallel calls without tools": ({**HI, "parallel_tool_calls": True}, "parallel_tool_calls"),
    "function_call without functions": ({**HI, "function_call": "auto"}, "function_call"),
    "function_call for tools": ({**HI, "tools": [TOOL], "function_call": "none"}, "function_call"),
    "tool_choice for functions": ({**HI, "functions": [{"name": "a"}], "tool_choice": "none"}, "tool_choice"),
    "sound": ({**HI, "modalities": ["audio"]}, "modalities[0]"),
    "a list": ([1, 2], None),
    "nothing": (None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_with_its_field(server: Server, name: str) -> None:
    body, param = BAD[name]
    with little_work():
        answer = post(server, body)
    error = error_of(answer)
    assert answer.status_code == 400, error
    assert error["param"] == param
    assert len(error["message"]) > 15


COMPLETE, EMBED, RESPOND = "/v1/completions", "/v1/embeddings", "/v1/responses"
LONG = "a " * 600
MADE = {"type": "function_call", "call_id": "1", "name": "a", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "1", "output": "3 °C"}
# Where a request goes, what is wrong with it, the field, and words of the message.
ELSEWHERE: list[tuple[str, dict[str, Any], str, str]] = [
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": [HALF]}]}, "messages[0].tool_calls", r"\ud800 at place 0"),
    (COMPLETE, {"prompt": []}, "prompt", "a list may not be empty"),
    (COMPLETE, {"prompt": None}, "prompt", "Field required"),
    (COMPLETE, {"prompt": [10**6]}, "prompt", "no token 1000000"),
    (COMPLETE, {"prompt": "\ud800"}, "prompt", "surrogate pair"),
    (COMPLETE, {"prompt": "a", "n": 100}, "n", "at most 8 answers"),
    (COMPLETE, {"prompt": "a", "n": 129}, "n", "less than or equal to 128"),
    (COMPLETE, {"prompt": "a", "best_of": 129}, "best_of", "less than or equal to 128"),
    (COMPLETE, {"prompt": ["a"] * 65}, "prompt", "at most 64 answers"),
    (COMPLETE, {"prompt": "a", "stop": ["a"] * 5}, "stop", "at most 4 texts"),
    (COMPLETE, {"prompt": "a", "stream_options": {}}, "stream_options", "goes with stream"),
    (COMPLETE, {"prompt": LONG, "model": "llama"}, "prompt", "Send less, or ask for fewer tokens"),
    (EMBED, {"input": []}, "input", "none of them may be empty"),
    (EMBED, {"input": ""}, "input", "none of them may be empty"),
    (EMBED, {"input": None}, "input", "Field required"),
    (EMBED, {"input": {}}, "input", "give a text"),
    (EMBED, {"input": ["a", ""]}, "input", "none of them may be empty"),
    (EMBED, {"input": ["a"] * 2049}, "input", "at most 2,048 texts"),
    (EMBED, {"input": [[5], [10**6]]}, "input", "the text 1: there is no token"),
    (EMBED, {"input": "\ud800"}, "input", "surrogate pair"),
    (EMBED, {"input": LONG, "model": "llama"}, "input", "Send shorter texts"),
    (RESPOND, {"input": []}, "input", "nothing to answer"),
    (RESPOND, {"input": "<|assistant|>"}, "input", "Write it otherwise"),
    (RESPOND, {"input": [{"role": "user", "content": "a"}, 5]}, "input[1]", "valid dictionary"),
    (RESPOND, {"input": "a", "instructions": "<|assistant|>"}, "instructions", "Write it otherwise"),
    (RESPOND, {"input": [{**MADE, "arguments": "["}]}, "input[0]", "not JSON"),
    (RESPOND, {"input": [MADE, {**RESULT, "call_id": "2"}]}, "input[1]", "has no call '2'"),
    (RESPOND, {"input": [{**MADE, "colour": "red"}]}, "input[0].colour", "not known here"),
    (RESPOND, {"input": "a", "text": {"format": {**FORMAT, "schema": {"type": 7}}}}, "text.format", "Mend it"),
    (RESPOND, {"input": "a", "text": {"format": {**FORMAT, "schema": {"type": 7}}}, "tools": [FUNCTION]}, "text.format",
     "Mend it"),
    (RESPOND, {"input": "a", "text": {"format": FORMAT}, "tools": [{**FUNCTION, "parameters": {"type": 7}}]},
     "tools", "'a'"),
    (RESPOND, {"input": "a", "text": {"format": {**FORMAT, "name": None}}}, "text.format", "name and schema"),
    (RESPOND, {"input": "a", "tools": [{**FUNCTION, "parameters": {"type": 7}}]}, "tools", "'a'"),
    (RESPOND, {"input": "a", "tools": [FUNCTION], "tool_choice": {**FUNCTION, "name": "b"}}, "tool_choice", "no tool"),
    (RESPOND, {"input": LONG, "model": "llama"}, "input", '"truncation": "auto"'),
    (RESPOND, {"input": LONG, "model": "llama", "truncation": "auto"}, "input", "Send less, or ask for fewer"),
    ("/tokenize", {"prompt": "\ud800"}, "prompt", "surrogate pair"),
    ("/detokenize", {"tokens": [-1]}, "tokens", "no token -1"),
    ("/v1/sessions", {"messages": HI["messages"], "tools": [tool(description="<|assistant|>")]}, "tools", "otherwise"),
    ("/v1/sessions", {"model": "llama", "messages": [{"role": "user", "content": LONG}]}, "messages", "Send less"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param", "words"), ELSEWHERE)
def test_bad_input_of_other_routes_is_told_with_its_field(
    server: Server, path: str, body: dict[str, Any], param: str, words: str
) -> None:
    answer = post(server, {"model": "mmrec", **body}, path)
    error = error_of(answer)
    assert answer.status_code == 400 and error["param"] == param, error
    assert words in error["message"]


def test_a_text_as_long_as_the_context_is_scored_and_embedded(server: Server) -> None:
    ids = [5] * 512
    scored = post(
        server, {"model": "llama", "prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0}, COMPLETE
    )
    assert len(scored.json()["choices"][0]["logprobs"]["tokens"]) == 512
    assert len(post(server, {"model": "llama", "input": ids}, EMBED).json()["data"]) == 1
    for path, field in ((COMPLETE, "prompt"), (EMBED, "input")):
        assert post(server, {"model": "llama", field: [*ids, 5]}, path).status_code == 400


@pytest.mark.parametrize("query", ["stream=true", "include=output", "include[]=output", "starting_after=3"])
def test_what_a_query_asks_for_and_nobody_gives_is_refused(server: Server, query: str) -> None:
    made = post(server, {"model": "mmrec", "input": "Hi", "max_output_tokens": 3}, RESPOND).json()
    answer = httpx.get(f"{server.url}{RESPOND}/{made['id']}?{query}")
    assert answer.status_code == 400 and error_of(answer)["param"] == query.partition("=")[0].removesuffix(
        "[]"
    )
    assert httpx.get(f"{server.url}{RESPOND}/{made['id']}?stream=false").json() == made
    for wrong in ("include=output", "after=msg_none", "order=up", "limit=0"):
        answer = httpx.get(f"{server.url}{RESPOND}/{made['id']}/input_items?{wrong}")
        assert answer.status_code == 400 and error_of(answer)["param"] == wrong.partition("=")[0]


def test_thousands_of_calls_are_read_in_time(server: Server) -> None:
    body = {"model": "llama", "input": [{"role": "user", "content": "a"}, *[MADE] * 2_000]}
    with little_work():
        answer = post(server, body, RESPOND)
    assert error_of(answer)["code"] == "context_length_exceeded"


def test_an_empty_body_is_told_what_to_send(server: Server) -> None:
    answer = httpx.post(server.url + CHAT, content="", headers={"Content-Type": "application/json"})
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (400, None) and "send a JSON object" in error["message"]


@pytest.mark.parametrize("content", ["{bad", "", "null", '{"a": NaN', "[" * 100_000, b"\xff\xfe"])
def test_a_body_that_is_no_json(server: Server, content: str | bytes) -> None:
    answer = httpx.post(server.url + CHAT, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error_of(answer)


def test_addresses_and_methods_that_are_not_there(server: Server) -> None:
    assert error_of(httpx.get(f"{server.url}/v1/files"))["code"] == "not_found"
    for method, path, allowed in (
        ("GET", CHAT, "POST"), ("HEAD", CHAT, "POST"), ("POST", "/v1/models", "GET, HEAD"), ("POST", "/", "GET, HEAD"),
        ("PATCH", "/v1/sessions", "GET, HEAD, POST"), ("PUT", "/v1/sessions/a", "DELETE, GET, HEAD"),
    ):  # fmt: skip
        answer = httpx.request(method, server.url + path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        assert method == "HEAD" or error_of(answer)["code"] == "method_not_allowed"


def test_head_is_get_without_the_body(server: Server) -> None:
    made = post(server, {"model": "mmrec", "input": "Hi", "max_output_tokens": 3}, RESPOND).json()
    with httpx.Client(base_url=server.url) as http:
        for path in (
            "/", "/health", "/v1/models", "/v1/models/llama", "/tokenizer_info", "/openapi.json",
            f"{RESPOND}/{made['id']}", "/v1/models/none", "/v1/files",
        ):  # fmt: skip
            head, got = http.head(path), http.get(path)
            assert head.status_code == got.status_code and head.content == b"", path
            assert head.headers["content-length"] == str(len(got.content))


def test_nobody_is_sent_to_the_host_of_a_request(server: Server) -> None:
    for path in (CHAT, "/v1/models", "/health"):
        for method in ("GET", "POST"):
            answer = httpx.request(method, f"{server.url}{path}/", json={}, headers={"Host": "localhost"})
            assert answer.status_code in (404, 405) and "location" not in answer.headers
            assert error_of(answer)["code"] in ("not_found", "model_not_found", "method_not_allowed")


def test_no_route_takes_a_query_that_it_does_not_know(server: Server) -> None:
    described = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    routes = [(method, path) for path, methods in described.items() for method in methods]
    for method, path in [*routes, ("get", "/"), ("get", "/openapi.json"), ("head", "/health")]:
        answer = httpx.request(method, f"{server.url}{path}?api_version=2024", json={})
        assert answer.status_code == 400
        if method != "head":
            error = error_of(answer)
            assert (error["param"], error["code"]) == ("api_version", "unknown_parameter")


def test_what_is_refused_disturbs_nobody(server: Server) -> None:
    before = httpx.post(server.url + CHAT, json={**HI, "temperature": 0}).json()["choices"]
    for body, _ in BAD.values():
        post(server, body)
    assert httpx.post(server.url + CHAT, json={**HI, "temperature": 0}).json()["choices"] == before
    for model in server.context.registry.models:
        assert model.scheduler.num_running == model.scheduler.num_waiting == 0


@pytest.mark.parametrize(
    ("query", "code", "words"),
    [
        ("limit[]=1", "unknown_parameter", "no list; leave the brackets out"),
        ("limit=1&limit=2", "invalid_value", "stands 2 times in the address, and one value counts; send one"),
        ("nothing[]=1", "unknown_parameter", "not known here"),
    ],
)
def test_a_query_that_is_no_list_is_given_once(server: Server, query: str, code: str, words: str) -> None:
    answer = httpx.get(f"{server.url}/v1/sessions?{query}")
    assert (answer.status_code, error_of(answer)["code"]) == (400, code)
    assert words in error_of(answer)["message"]
    assert httpx.get(f"{server.url}/v1/sessions?limit=1").status_code == 200


def test_an_empty_name_of_a_model_is_told(server: Server) -> None:
    for answer in (httpx.get(f"{server.url}/v1/models/"), post(server, {**HI, "model": ""})):
        assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")
        assert error_of(answer)["message"].startswith("the name of the model is empty; there are mmrec,")


@pytest.mark.parametrize("name", ["get weather", "ağaç", "", "a" * 65])
def test_the_letters_of_a_functions_name_are_told(server: Server, name: str) -> None:
    answer = post(server, {**HI, "tools": [{"type": "function", "function": {"name": name}}]})
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (400, "tools[0].function.name")
    assert error["message"].endswith("give a name of 1 to 64 letters a-z and A-Z, digits, _, - and .")
