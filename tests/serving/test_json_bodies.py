"""Bodies that are no JSON, or not as they should be: what is wrong with them is said, and costs little."""

from __future__ import annotations

import functools
import gc
import gzip
import json
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving.server import Server
from waiting import LONGEST, little_work

from mm_rec.serving import json_bodies
from mm_rec.serving.json_bodies import MAX_CONTAINERS, MAX_DEPTH, MAX_DIGITS, MAX_KEYS, JsonError, parse_body
from mm_rec.serving.protocol.request_model import MAX_JSON_DEPTH

MIB = 2**20
CHAT = "/v1/chat/completions"
HI = {"model": "mmrec", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}


def nested(depth: int) -> bytes:
    return b'{"a":' + b"[" * depth + b"]" * depth + b"}"


def many(kind: bytes, count: int) -> bytes:
    return b'{"a":[' + b",".join([kind] * count) + b"]}"


# What comes, words of what is said of it, and the field.
UNREADABLE: dict[str, tuple[bytes, str, str | None]] = {
    "empty": (b" \r\n", "the body is empty", None),
    "cut off": (b'{"a": ', "after 6 characters", None),
    "no JSON": (b"model=mmrec", "the body is not JSON: Expecting value", None),
    "Turkish in cp1254": ('{"a": "ağaç"}'.encode("cp1254"), "not UTF-8: the byte 0xf0 at place 8", None),
    "UTF-16": ('{"a": "b"}'.encode("utf-16"), "the byte 0xff at place 0; send JSON in UTF-8", None),
    "gzip": (gzip.compress(b"{}"), "not UTF-8", None),
    "null": (b"null", "no object", None),
    "a list": (b"[1]", "no object", None),
    "100,000 brackets": (b"[" * 100_000, f"more than {MAX_DEPTH} deep", None),
    "100,000 brackets closed": (b"[" * 100_000 + b"]" * 100_000, f"more than {MAX_DEPTH} deep", None),
    "a list too deep": (nested(MAX_DEPTH), f"more than {MAX_DEPTH} deep", None),
    "a number of 5,000 digits": (b'{"a": ' + b"1" * 5_000 + b"}", f"5,000 digits; the most are {MAX_DIGITS:,}", None),
    "a key twice": (b'{"model": "a", "b": {"c": 1}, "model": "d"}', "the key 'model' stands twice", "model"),
    "a key twice below": (b'{"a": [{"role": 1, "role": 1}]}', "the key 'role' stands twice", "role"),
    "half of a pair": (b'{"a": [{"b": "x\\ud83d"}]}', "a[0].b: \\ud83d at place 1 is half of", "a[0].b"),
    "the other half": (b'{"a": "\\uDE00\\ud83d"}', "a: \\ude00 at place 0", "a"),
    "half of a pair as a key": (b'{"a": {"\\ud800": 1}}', "half of a surrogate pair", "a.\\ud800"),
    "too many keys": (json.dumps(dict.fromkeys(map(str, range(MAX_KEYS + 1)))).encode(), "the most are 10,000", None),
    "too many objects": (many(b"{}", MAX_CONTAINERS), "more than 500,000 brackets", None),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_wrong_with_a_body_is_said(name: str) -> None:
    body, words, place = UNREADABLE[name]
    with pytest.raises(JsonError) as caught:
        parse_body(body)
    assert words in str(caught.value) and caught.value.place == place
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", [name for name in UNREADABLE if "objects" not in name])
def test_it_is_said_to_the_client(server: Server, name: str) -> None:
    body, words, place = UNREADABLE[name]
    answer = httpx.post(server.url + CHAT, content=body, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_json", place)
    assert words in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"a": 1}',
        b'{"a": "\\ud83d\\ude00"}',
        b'{"a": "\\\\ud83d"}',
        b'{"a": {"b": 1}, "c": {"b": 1}}',
        b'{"a": ' + b"1" * MAX_DIGITS + b"}",
        nested(MAX_DEPTH - 1),
        many(b"[]", 1_000),
    ],
)
def test_what_is_right_is_read(body: bytes) -> None:
    assert parse_body(body) == json.loads(body)


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
def test_a_compressed_body_is_not_read(server: Server, encoding: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    answer = httpx.post(server.url + CHAT, content=gzip.compress(json.dumps(HI).encode()), headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (415, "unsupported_encoding")
    assert encoding in error["message"] and answer.headers["accept-encoding"] == "identity"
    headers["Content-Encoding"] = "identity"
    assert httpx.post(server.url + CHAT, json=HI, headers=headers).status_code == 200


def test_other_kinds_of_bodies_are_not_read_as_json(server: Server) -> None:
    for kind, status in (
        ("text/plain", 400), ("application/x-www-form-urlencoded", 400), ("", 400), ("application/jsonx", 400),
        ("application/json; charset=utf-8", 200), ("application/vnd.mine+json", 200),
    ):  # fmt: skip
        answer = httpx.post(server.url + CHAT, content=json.dumps(HI), headers={"Content-Type": kind})
        assert answer.status_code == status, kind


def test_a_million_wrong_items_are_one_error(server: Server) -> None:
    wrong: dict[str, dict[str, Any]] = {
        "messages": {**HI, "messages": [{"role": "x"}] * 400_000},
        "messages[0].role": {**HI, "messages": [{"role": "x"}] * 2_000},
        "stop": {**HI, "stop": [1] * 2_000_000},
        "tools": {**HI, "tools": [{"type": 1}] * 400_000},
        "tools[0].type": {**HI, "tools": [{"type": 1}] * 100},
    }
    for param, body in wrong.items():
        content = json.dumps(body, separators=(",", ":"))
        assert len(content) < 8 * MIB
        with little_work():
            answer = httpx.post(
                server.url + CHAT, content=content, headers={"Content-Type": "application/json"}
            )
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["param"] == param, error
        assert len(answer.content) < 1_000


def test_every_list_of_a_schema_ends_at_its_first_error() -> None:
    from mm_rec.serving.protocol import response_schemas, schemas
    from mm_rec.serving.protocol.fields import chat_request_type

    def lists(schema: Any) -> Iterator[dict[str, Any]]:
        if isinstance(schema, dict):
            if schema.get("type") == "list":
                yield schema
            schema = list(schema.values())
        if isinstance(schema, list | tuple):
            for part in schema:
                yield from lists(part)

    for model in (
        chat_request_type(),
        response_schemas.ResponseRequest,
        schemas.EmbeddingRequest,
        schemas.CompletionRequest,
    ):
        found = list(lists(model.__pydantic_core_schema__))
        assert found and all(one["fail_fast"] for one in found), model


def test_a_large_body_is_read_beside_the_event_loop(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, threads = json_bodies._parse_and_validate, list[tuple[bool, str]]()

    def noted(body: bytes, schema: Any) -> Any:
        threads.append((len(body) >= 2**16, threading.current_thread().name))
        return reader(body, schema)

    monkeypatch.setattr(json_bodies, "_parse_and_validate", noted)
    large = {"model": "mmrec", "tokens": [5] * 40_000}
    assert httpx.post(f"{server.url}/detokenize", json=large).status_code == 200
    assert httpx.post(server.url + CHAT, json=HI).status_code == 200
    [(is_large, own), (is_small, loop)] = threads
    assert (is_large, is_small) == (True, False) and own != loop


def test_a_long_key_is_not_copied_for_each_item_and_is_told_shortened(server: Server) -> None:
    key, items = "k" * 2**20, "1," * 1_000_000
    body = f'{{"{key}": [{items}"\\ud83d\\ude00", "\\ud83d"]}}'.encode()
    with little_work(), pytest.raises(JsonError, match=r"^k{200}: .* half of") as caught:
        parse_body(body)
    assert caught.value.place == "k" * 200
    answer = httpx.post(server.url + CHAT, json={**HI, key: 1})
    assert answer.json()["error"]["param"] == "k" * 200 and len(answer.content) < 1_000


@pytest.mark.parametrize("item", [b"1", b"1.5", b'"ab"', '"ş"'.encode(), b'{"":[]}', b"[]"])
def test_a_body_takes_a_bounded_memory(item: bytes) -> None:
    count = min(8 * MIB // (len(item) + 1), MAX_CONTAINERS // 2 if item[:1] in b"{[" else 8 * MIB) - 10
    body = many(item, count)
    tracemalloc.start()
    parse_body(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 * MIB


LONG = "x" * (4 * MIB)
# Bodies that are refused; with the server's collector of cycles at rest, none of them stays.
REFUSED = {
    "metadata": json.dumps({**HI, "metadata": {"x": LONG}}).encode(),
    "an unknown field": json.dumps({**HI, "x": LONG}).encode(),
    "a wrong value": json.dumps({**HI, "max_tokens": LONG}).encode(),
    "an unknown model": json.dumps({**HI, "model": LONG}).encode(),
    "no JSON": b'{"x": "' + LONG.encode(),
    "a key twice": b'{"x": 1, "x": "' + LONG.encode() + b'"}',
    "half of a pair": b'{"x": "\\ud83d' + LONG.encode() + b'"}',
    "no UTF-8": b"\xff" + LONG.encode(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_body_is_not_kept(server: Server, name: str) -> None:
    headers = {"Content-Type": "application/json"}
    ask = functools.partial(
        httpx.post, server.url + CHAT, content=REFUSED[name], headers=headers, timeout=LONGEST
    )
    assert ask().status_code in (400, 404)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(5):
            ask()
        assert httpx.get(f"{server.url}/health").status_code == 200  # what the last one had is given back
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert kept < 2 * len(LONG)


DEEP = MAX_JSON_DEPTH + 1
# Arguments of a call in the history, and words of what is said of them.
WRONG_ARGUMENTS: dict[str, tuple[str, str]] = {
    "just too deep": ('{"a":' * DEEP + "1" + "}" * DEEP, f"more than {MAX_JSON_DEPTH} deep in each other; make it"),
    "2,000 deep": ('{"a":' + "[" * 2_000 + "]" * 2_000 + "}", f"more than {MAX_JSON_DEPTH} deep in each other"),
    "50,000 deep": ('{"a":' + "[" * 50_000 + "]" * 50_000 + "}", f"more than {MAX_JSON_DEPTH} deep in each other"),
    "5,000 digits": ('{"a": ' + "1" * 5_000 + "}", f"5,000 digits; the most are {MAX_DIGITS:,}; shorten it"),
    "a key twice": ('{"a": 1, "a": 2}', "the key 'a' stands twice in one object of the text of the arguments"),
    "no JSON": ("{a: 1}", "is not JSON: Expecting property name"),
    "a list": ("[1]", "no object; send a JSON object"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_ARGUMENTS)
def test_arguments_in_history_are_read_as_bodies_are(server: Server, name: str) -> None:
    arguments, words = WRONG_ARGUMENTS[name]
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    history = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "1"},
    ]
    answer = httpx.post(server.url + CHAT, json={**HI, "messages": [*HI["messages"], *history]})  # type: ignore[misc]
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "messages[1].tool_calls"), error
    assert words in error["message"] and "set_int_max_str_digits" not in error["message"]
