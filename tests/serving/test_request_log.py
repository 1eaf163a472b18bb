"""The log: a line for each request, nothing of what was said in it, and no line that a client can break or flood."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving.server import Server, small_model
from transformers import PreTrainedTokenizerBase
from waiting import until

from mm_rec.serving import log_format, routes
from mm_rec.serving.access import AccessPolicy
from mm_rec.serving.api_keys import create_key
from mm_rec.serving.log_format import JsonFormatter, RepeatFilter, TextFormatter
from mm_rec.serving.protocol.chat_encoder import ChatEncoder

SECRET = "a secret of the prompt"
HI = {"model": "llama", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 3}
CHAT = "/v1/chat/completions"


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.said: list[str] = []
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.said.append(self.format(record))

    @property
    def fields(self) -> list[dict[str, Any]]:
        """Those of requests."""
        return [vars(record)["fields"] for record in self.records if "fields" in vars(record)]


@pytest.fixture
def logged() -> Iterator[Lines]:
    handler, logger = Lines(), logging.getLogger("mm_rec.serving")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(before)


def started(tokenizer: PreTrainedTokenizerBase, folder: Path, **more: Any) -> Server:
    return Server([small_model("llama", tokenizer)], folder, **more)


@pytest.fixture
def keyed(chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Iterator[Server]:
    running = started(chat_tokenizer, tmp_path, policy=AccessPolicy(require_keys=True, allowed_hosts=None))
    yield running
    running.stop()


def test_a_line_says_who_asked_what_and_what_it_took(keyed: Server, logged: Lines) -> None:
    text, _ = create_key(keyed.context.store, "Ayşe")
    long = {
        **HI,
        "messages": [{"role": "user", "content": "Hi! " * 60}],
    }  # a short prompt is read in one pass
    with httpx.Client(base_url=keyed.url, headers={"Authorization": f"Bearer {text}"}) as http:
        whole = http.post(CHAT, json=long)
        with http.stream("POST", CHAT, json={**long, "stream": True}) as stream:
            list(stream.iter_lines())
        refused = http.post(CHAT, json={**HI, "temperature": 9})
        unknown = http.post(CHAT, json={**HI, "model": "gpt"})
        http.get("/nowhere")
    keyed.stop()  # until the last line is written
    usage, lines = whole.json()["usage"], logged.fields
    assert [line["status"] for line in lines] == [200, 200, 400, 404, 404]
    for line, answer in zip(lines, (whole, stream, refused, unknown), strict=False):
        assert line["request_id"] == answer.headers["x-request-id"]
        assert (line["method"], line["path"], line["client"], line["key"]) == (
            "POST",
            CHAT,
            "127.0.0.1",
            "Ayşe",
        )
    assert len({line["request_id"] for line in lines}) == 5
    for line in lines[:2]:
        assert (line["model"], line["prompt_tokens"], line["completion_tokens"]) == (
            "llama", usage["prompt_tokens"], usage["completion_tokens"],
        )  # fmt: skip
        assert 0 < line["first_token_seconds"] <= line["seconds"]
    assert lines[0]["cached_tokens"] == 0 < lines[1]["cached_tokens"]
    assert (
        "model" not in lines[2] and "prompt_tokens" not in lines[3] and "first_token_seconds" not in lines[4]
    )
    for formatter in (TextFormatter(), JsonFormatter()):
        said = "\n".join(map(formatter.format, logged.records))
        assert SECRET not in said and text not in said and len(said.splitlines()) == 5


def test_every_answer_has_an_id_and_a_line(
    keyed: Server, logged: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(request: Any) -> Any:
        raise RuntimeError("what nobody expects")

    monkeypatch.setattr(routes, "get_context", broken)
    answers = [
        httpx.get(f"{keyed.url}/health"), httpx.get(f"{keyed.url}/health", headers={"X-Request-Id": "mine"}),
        httpx.get(f"{keyed.url}/v1/models"), httpx.head(f"{keyed.url}/"),
        httpx.post(f"{keyed.url}{CHAT}", content=b"x", headers={"Content-Encoding": "gzip"}),
    ]  # fmt: skip
    assert [answer.status_code for answer in answers] == [500, 500, 401, 200, 401]
    assert "server failed" in answers[0].json()["error"]["message"]
    traced = [line for line in map(json.loads, logged.said) if line["message"] == "a request failed"]
    assert [line["request_id"] for line in traced] == [
        answers[0].headers["x-request-id"], answers[1].headers["x-request-id"],
    ]  # fmt: skip
    keyed.stop()
    assert [line["request_id"] for line in logged.fields] == [one.headers["x-request-id"] for one in answers]
    assert all(line["request_id"].startswith("req_") for line in logged.fields)  # a client's own is not taken
    assert [line["status"] for line in logged.fields] == [500, 500, 401, 200, 401]
    counted = keyed.context.metrics.render().decode()
    assert 'mmrec_requests_total{route="/health",status="500"} 2.0' in counted
    assert 'mmrec_requests_total{route="/v1/models",status="401"} 1.0' in counted


def test_levels(keyed: Server, logged: Lines) -> None:
    for path in ("/health", "/metrics", "/"):
        httpx.get(keyed.url + path)
    keyed.stop()
    levels = [record.levelname for record in logged.records if "fields" in vars(record)]
    assert levels == ["DEBUG", "INFO", "INFO"]  # /metrics was refused


def test_prompts_are_logged_where_that_is_asked_for(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, logged: Lines
) -> None:
    running = started(chat_tokenizer, tmp_path, log_prompts=True)
    httpx.post(running.url + CHAT, json=HI)
    httpx.post(running.url + CHAT, json={**HI, "user": "a" * 2**17})
    running.stop()
    assert json.loads(logged.fields[0]["body"]) == HI
    assert len(logged.fields[1]["body"]) == 2**16


FORGED = "/v1\n2026 INFO request status=200\r\x1b[2J\x85\u2028\u202e"


def test_no_client_can_break_a_line(server: Server, logged: Lines) -> None:
    httpx.get(server.url + "/" + "".join(f"%{byte:02x}" for byte in FORGED.encode()))
    httpx.get(server.url + "/" + "a" * 10_000)
    httpx.request("G" * 10_000, server.url, headers={"X-Forwarded-For": "1" * 10_000})
    until(lambda: len(logged.fields) == 3)
    made = logging.makeLogRecord(
        {"msg": "failed: %s", "args": (FORGED,), "fields": {"key": 'a "b" =c', "path": FORGED}}
    )
    for record in (*logged.records, made):
        for formatter in (TextFormatter(), JsonFormatter()):
            said = formatter.format(record)
            assert len(said.splitlines()) == 1 and said.isprintable() and len(said) < 1_000
    assert 'key="a \\"b\\" =c"' in TextFormatter().format(made)
    assert json.loads(JsonFormatter().format(made))["path"] == FORGED


def fail(depth: int) -> None:
    if depth % 2:  # two calls in turn: Python does not fold these
        fail(depth + 1)
    else:
        fail(depth + 1) if depth else fail(1)


def record_of_error() -> logging.LogRecord:
    try:
        fail(0)
    except RecursionError:
        return logging.makeLogRecord(
            {"msg": "a request failed", "levelno": logging.ERROR, "exc_info": sys.exc_info()}
        )
    raise AssertionError


def test_a_deep_traceback_is_short() -> None:
    record = record_of_error()
    for formatter in (TextFormatter(), JsonFormatter()):
        said = formatter.format(record)
        assert "RecursionError" in said and "test_request_log" in said and len(said) < 12_000


def test_a_thing_is_said_once_a_minute() -> None:
    now = 0.0
    repeats, said = RepeatFilter(lambda: now), list[str]()

    def log(text: str, level: int = logging.WARNING, **more: Any) -> None:
        record = logging.makeLogRecord({"msg": text, "levelno": level, **more})
        if repeats.filter(record):
            said.append(record.getMessage())

    for _ in range(1_000):
        log("socket.accept() out of system resource", logging.ERROR)
    for _ in range(3):
        log("something else")
        log("a line", logging.INFO)
        log("request", logging.ERROR, fields={})
    assert said == [
        "socket.accept() out of system resource", "something else", "a line", "request", "a line", "request", "a line",
        "request",
    ]  # fmt: skip
    said.clear()
    now = 61.0
    log("socket.accept() out of system resource", logging.ERROR)
    log("socket.accept() out of system resource", logging.ERROR)
    assert said == ["socket.accept() out of system resource (and 999 times more since it was last said)"]
    for number in range(5_000):
        log(f"{number}")
    assert len(repeats._seen) <= 1_000


def test_two_errors_of_one_message_are_two_things() -> None:
    repeats = RepeatFilter()
    deep = [record_of_error() for _ in range(2)]
    try:
        raise ValueError
    except ValueError:
        other = logging.makeLogRecord({**vars(deep[0]), "exc_info": sys.exc_info()})
    assert [repeats.filter(record) for record in (*deep, other)] == [True, False, True]


@pytest.mark.parametrize("as_json", [False, True])
def test_the_log_goes_to_stderr(as_json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    root, ours = logging.getLogger(), logging.getLogger("mm_rec")
    before = root.handlers[:], root.level, ours.level
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    try:
        root.handlers[:] = []
        log_format.configure_logging("info", as_json=as_json)
        ours.info("one")
        ours.debug("none")
        logging.getLogger("others").info("none")
        logging.getLogger("others").warning("two")
    finally:
        root.handlers[:], root.level, ours.level = before[0], before[1], before[2]
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 and "none" not in stream.getvalue()
    if as_json:
        assert [json.loads(line)["message"] for line in lines] == ["one", "two"]
    else:
        assert lines[0].endswith(" INFO one") and lines[1].endswith(" WARNING two")


@pytest.mark.parametrize("ended", ["timeout", "error", "client_gone", None])
def test_how_a_stream_ended_is_logged(
    server: Server, logged: Lines, monkeypatch: pytest.MonkeyPatch, unhurried: None, ended: str | None
) -> None:
    def fail(*given: Any) -> None:
        raise RuntimeError("what nobody expects")

    body = {**HI, "stream": True, "max_tokens": 256, "logit_bias": never_ends(server)}
    if ended is None:
        body["max_tokens"] = 3
    if ended == "error":
        monkeypatch.setattr(ChatEncoder, "encode", fail)
    if ended == "timeout":
        monkeypatch.setattr(server.context, "limits", replace(server.context.limits, timeout_seconds=0.5))
    with httpx.stream("POST", server.url + CHAT, json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        if ended != "client_gone":
            list(lines)
    until(lambda: len(logged.fields) == 1)
    [line] = logged.fields
    [level] = [record.levelname for record in logged.records if "fields" in vars(record)]
    assert (line["status"], line.get("ended")) == (200, ended)
    assert level == {"timeout": "WARNING", "error": "ERROR"}.get(ended or "", "INFO")


def never_ends(server: Server) -> dict[str, int]:
    """The bias that keeps an answer from its end."""
    return {str(token): -100 for token in server.context.registry.models[0].stop_ids}
