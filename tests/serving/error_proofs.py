"""Each code of the server's errors: what it means, and a request that gets it, or the test that shows it."""

from __future__ import annotations

import ast
import gzip
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from serving.server import Server

from mm_rec.serving import sessions
from mm_rec.store.retention import Retention

SERVING = Path(sessions.__file__).parent
CHAT = "/v1/chat/completions"
HI = {"model": "llama", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
Ask = Callable[[Server], httpx.Response]


class ErrorCode(NamedTuple):
    """A row of the table; `shown`: a request that gets it, or the file and the name of a test."""

    status: int
    when: str
    shown: Ask | str


def _chat(**fields: Any) -> Ask:
    return lambda server: httpx.post(server.url + CHAT, json={**HI, **fields})


def _get(path: str, **headers: str) -> Ask:
    return lambda server: httpx.get(server.url + path, headers=headers)


def _send(content: bytes, **headers: str) -> Ask:
    headers = {
        "Content-Type": "application/json",
        **{key.replace("_", "-"): one for key, one in headers.items()},
    }
    return lambda server: httpx.post(server.url + CHAT, content=content, headers=headers)


def _nonsense(server: Server) -> httpx.Response:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    return httpx.Response(int(head.split()[1]), content=body)


def _one_session_too_many(server: Server) -> httpx.Response:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.context.store, "retention", Retention(max_sessions=0))
        return httpx.post(f"{server.url}/v1/sessions", json={"model": "llama"})


ERRORS: dict[str, ErrorCode] = {
    "invalid_http": ErrorCode(
        400, "what came is not HTTP/1.1, has too long headers, or a body in tiny chunks", _nonsense
    ),
    "invalid_json": ErrorCode(
        400, "the body is no JSON object in UTF-8, has a key twice or half of a surrogate pair, or is nested too "
        "deeply; or its Content-Type is not `application/json`", _send(b'{"model": 1, "model": 2}'),
    ),
    "invalid_value": ErrorCode(400, "a field has a value that it cannot have, or not beside the others", _chat(n=0)),
    "missing_required_parameter": ErrorCode(400, "a field that must be there is not", _chat(messages=[{}])),
    "unknown_parameter": ErrorCode(400, "a field of the body or the query that is not known", _get("/health?a=1")),
    "context_length_exceeded": ErrorCode(
        400, "the request does not fit the context, or the server's limit",
        _chat(messages=[{"role": "user", "content": "a " * 600}]),
    ),
    "previous_response_not_found": ErrorCode(
        404, "there is no response of this key to go on from",
        lambda server: httpx.post(
            f"{server.url}/v1/responses", json={"model": "llama", "input": "a", "previous_response_id": "none"}
        ),
    ),
    "too_many_sessions": ErrorCode(400, "there are as many sessions as the server keeps", _one_session_too_many),
    "invalid_api_key": ErrorCode(
        401, "no key, or none that is in force",
        "test_access.py::test_without_a_key_nothing_is_answered_but_what_says_nothing",
    ),
    "wrong_host": ErrorCode(403, "a name of the server other than this machine's (`Host`)", _get("/", Host="a.b")),
    "not_found": ErrorCode(404, "there is nothing at this address", _get("/v1/files")),
    "model_not_found": ErrorCode(404, "there is no such model", _chat(model="gpt-4o")),
    "item_not_found": ErrorCode(
        404, "there is no such item of a response of this key (`item_reference`)",
        lambda server: httpx.post(
            f"{server.url}/v1/responses",
            json={"model": "llama", "input": [{"type": "item_reference", "id": "msg_none"}]},
        ),
    ),
    "session_not_found": ErrorCode(404, "there is no such session of this key", _get("/v1/sessions/none")),
    "response_not_found": ErrorCode(404, "there is no such response of this key", _get("/v1/responses/none")),
    "method_not_allowed": ErrorCode(405, "the address takes other methods, which `Allow` lists", _get(CHAT)),
    "timeout": ErrorCode(
        408, "the body came too slowly, or the answer took more seconds than `--timeout`",
        "test_generation.py::test_an_answer_that_takes_too_long_is_ended_with_408_also_in_the_queue",
    ),
    "session_busy": ErrorCode(
        409, "another request goes on with this session",
        "test_sessions.py::test_a_turn_that_is_not_finished_changes_nothing",
    ),
    "session_stale": ErrorCode(
        409, "the model of this session has changed",
        "test_sessions.py::test_a_session_belongs_to_its_model_and_the_same_weights",
    ),
    "request_too_large": ErrorCode(413, "a body of more than 8 MiB", _send(b"x" * (2**23 + 1))),
    "unsupported_encoding": ErrorCode(
        415, "a compressed body (`Content-Encoding`)", _send(gzip.compress(b"{}"), Content_Encoding="gzip")
    ),
    "rate_limit_exceeded": ErrorCode(
        429, "a limit of the key; `Retry-After` says when to ask again",
        "test_openai_client.py::test_a_key_lets_in_and_has_its_limit",
    ),
    "queue_full": ErrorCode(
        429, "as many requests wait as may (`--most-waiting`)", "test_generation.py::test_a_full_queue_answers_429"
    ),
    "too_many_connections": ErrorCode(
        503, "as many connections are being answered as may be (`--max-connections`); 429 where they are all of one "
        "address (`--max-per-address`)",
        "test_connections.py::test_where_all_are_being_answered_the_next_is_told",
    ),
    "shutting_down": ErrorCode(
        503, "the server is stopping", "test_generation.py::test_a_server_that_stops_tells_its_streams"
    ),
    "store_unavailable": ErrorCode(
        503, "the store cannot be written to, or not in time; `Retry-After` says when to ask again",
        "test_storage_health.py::test_a_locked_store_is_told_and_limits_fail_closed",
    ),
    "insufficient_storage": ErrorCode(
        507, "the server's disk is full", "test_bodies.py::test_a_full_disk_is_told_before_it_is_full"
    ),
}  # fmt: skip


def codes_of_the_source() -> set[str]:
    """All codes that the server's modules give to an ApiError."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SERVING.rglob("*.py")]
    calls = [one for tree in trees for one in ast.walk(tree) if isinstance(one, ast.Call)]
    codes = {"invalid_json", "missing_required_parameter", "unknown_parameter"}  # of errors.py's own table
    for call in calls:
        if isinstance(call.func, ast.Name) and call.func.id == "ApiError":
            given = [*call.args[3:4], *(one.value for one in call.keywords if one.arg == "code")]
            codes |= {one.value for one in given if isinstance(one, ast.Constant) and one.value}
    return codes


def shown_by(name: str, code: str) -> bool:
    """Whether there is a test of this name that knows this code."""
    file, _, test = name.partition("::")
    tree = ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8"))
    [found] = [one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == test]
    return code in ast.unparse(found)
