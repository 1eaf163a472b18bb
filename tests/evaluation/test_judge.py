"""The judge, asked through a real HTTP server that answers as OpenAI's does."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.data.conversations.conversation import ChatMessage, Conversation
from mm_rec.errors import ConfigError
from mm_rec.evaluation.chat_eval import evaluate_chat
from mm_rec.evaluation.judge import (
    JudgeCase,
    JudgeConfig,
    Verdict,
    check_judge,
    judge_answers,
    judge_summary,
    parse_verdict,
)
from mm_rec.inference.engine import Engine
from mm_rec.inference.sampler import SamplingParams

KEY = "sk-gizli"


@dataclass
class Endpoint:
    """What the server says to requests, and what it was asked. An answer is (status, text of the message)."""

    url: str = ""
    answer: Callable[[list[dict[str, str]]], tuple[int, str]] = lambda messages: (200, good(7))
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)


def good(score: int) -> str:
    return json.dumps({"score": score, "reason": "Doğru."})


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    state = Endpoint()
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append(body)
            state.keys.add(self.headers["Authorization"])
            status, text = state.answer(body["messages"])
            if self.path != "/v1/chat/completions":
                status = 404
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            fields = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
            value = {**fields, "choices": [choice]} if status == 200 else {"error": {"message": f"bad {KEY}"}}
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Retry-After", "0.01")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def config(endpoint: Endpoint, **changes: Any) -> JudgeConfig:
    return JudgeConfig(base_url=endpoint.url, model="judge", api_key_env="JUDGE_KEY", **changes)


def test_each_answer_gets_its_verdict_in_order(endpoint: Endpoint) -> None:
    endpoint.answer = lambda messages: (200, good(int(messages[1]["content"].split("sayı ")[1].split()[0])))
    cases = [JudgeCase("user: ?", "given", f"sayı {number} .") for number in range(1, 11)]
    verdicts = judge_answers(config(endpoint), cases)
    assert verdicts == [Verdict(number, "Doğru.") for number in range(1, 11)]
    assert endpoint.keys == {f"Bearer {KEY}"}
    for asked in endpoint.asked:
        assert asked["model"] == "judge" and asked["temperature"] == 0
        assert [message["role"] for message in asked["messages"]] == ["system", "user"]
        assert "given" in asked["messages"][1]["content"]


def test_an_answer_that_cannot_be_read_is_asked_for_again_and_then_counted(endpoint: Endpoint) -> None:
    def answer(messages: list[dict[str, str]]) -> tuple[int, str]:
        mended = "mends" in messages[1]["content"] and len(messages) == 4
        return 200, good(3) if mended else "I would say 7."

    endpoint.answer = answer
    cases = [JudgeCase("user: ?", "x", name) for name in ("mends", "never")]
    verdicts = judge_answers(config(endpoint, attempts=3), cases)
    assert verdicts[0] == Verdict(3, "Doğru.")
    assert verdicts[1].score is None and "in 3 attempts" in verdicts[1].reason
    assert len(endpoint.asked) == 2 + 3
    told = judge_summary(config(endpoint), verdicts)
    assert (told["score"], told["scored"], told["without"]) == (3, 1, 1)


@pytest.mark.parametrize("status", [429, 500])
def test_a_request_that_fails_is_repeated_and_then_counted(endpoint: Endpoint, status: int) -> None:
    answers = iter([(status, ""), (status, ""), (200, good(9))])
    endpoint.answer = lambda messages: next(answers)
    assert judge_answers(config(endpoint, retries=2), [JudgeCase("?", "x", "y")]) == [Verdict(9, "Doğru.")]
    endpoint.answer = lambda messages: (status, "")
    (verdict,) = judge_answers(config(endpoint, retries=1), [JudgeCase("?", "x", "y")])
    assert verdict.score is None and "no answer" in verdict.reason and KEY not in verdict.reason
    assert len(endpoint.asked) == 3 + 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "[7]",
        '{"score": 7}',
        '{"score": 7, "reason": "x", "more": 1}',
        '{"score": "7", "reason": "x"}',
        '{"score": 7.0, "reason": "x"}',
        '{"score": true, "reason": "x"}',
        '{"score": 0, "reason": "x"}',
        '{"score": 11, "reason": "x"}',
        '{"score": 7, "reason": null}',
        'Here: {"score": 7, "reason": "x"}',
    ],
)
def test_only_the_object_asked_for_is_a_verdict(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_verdict(text)
    assert parse_verdict(' {"reason": "x", "score": 10}\n') == Verdict(10, "x")


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "JUDGE_KEY"), (403, "does not let this key use 'judge'"), (404, "/v1"), (400, r"\(400\)")],
)
def test_a_judge_that_refuses_is_known_before_the_work(endpoint: Endpoint, status: int, remedy: str) -> None:
    check_judge(config(endpoint))
    endpoint.answer = lambda messages: (status, "")
    with pytest.raises(ConfigError, match=remedy) as raised:
        check_judge(config(endpoint))
    assert KEY not in str(raised.value)


def test_a_judge_that_is_not_there_is_known_before_the_work(endpoint: Endpoint) -> None:
    with pytest.raises(ConfigError, match=r"127.0.0.1:9/v1: nothing answers there .*--judge-url"):
        check_judge(config(endpoint, retries=0).replace(base_url="http://127.0.0.1:9/v1"))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("localhost:8000", "is not a URL such as"),
        ("ftp://host/v1", "is not a URL such as"),
        ("https://user:secret@host/v1", "environment variable"),
        ("https://host/v1?key=secret", "environment variable"),
    ],
)
def test_an_address_is_one_and_holds_no_key(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        JudgeConfig.read({"base_url": url, "model": "m"})


def test_the_report_has_the_verdicts_and_never_the_key(
    endpoint: Endpoint, build_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    endpoint.answer = lambda messages: (200, good(4) if "Ayşe" in messages[1]["content"] else "?")
    talks = [
        Conversation((ChatMessage("user", question), ChatMessage("assistant", "Bir kız.")))
        for question in ("Ayşe kim?", "Who?")
    ]
    sampling = SamplingParams(temperature=0, max_new_tokens=3)
    endpoint_config = config(endpoint, attempts=1)
    first = endpoint.answer
    endpoint.answer = lambda messages: (
        (200, good(1)) if "2 + 2" in messages[1]["content"] else first(messages)
    )
    report = evaluate_chat(Engine(build_model("mmrec")), tokenizer, talks, sampling, judge=endpoint_config)
    assert [answer["judge"]["score"] for answer in report["answers"]] == [4, None]
    assert report["total"]["judge"] == report["categories"]["tr"]["judge"] == 4
    assert (report["judge"]["scored"], report["judge"]["without"]) == (1, 1)
    assert KEY not in json.dumps(report)
    asked = next(one for one in endpoint.asked if "Who?" in one["messages"][1]["content"])
    assert "user: Who?" in asked["messages"][1]["content"] and "Bir kız." in asked["messages"][1]["content"]
