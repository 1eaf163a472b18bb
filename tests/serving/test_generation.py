"""The server answers what the engine generates alone, whatever is cached and whatever else it serves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from inference.test_native import with_adapters
from serving.server import Server, small_model
from small_models import build_small
from transformers import PreTrainedTokenizerBase
from waiting import LONGEST, until

from mm_rec.data.conversations.conversation import ChatMessage
from mm_rec.data.conversations.rendering import chat_prompt_ids
from mm_rec.inference.engine import MAX_KERNEL_TOKENS
from mm_rec.inference.generate import IncrementalDetokenizer
from mm_rec.inference.sampler import SamplingParams
from mm_rec.inference.scheduler import Scheduler
from mm_rec.serving.context import RequestLimits

SYSTEM = {"role": "system", "content": "You are helpful, and answer in a few words."}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def ask(server: Server, model: str, messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 24, **options}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=LONGEST)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def said(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def alone(server: Server, name: str, messages: list[dict[str, str]], tokens: int = 24) -> str:
    """Return what the engine generates alone, with nothing cached."""
    variant = server.context.registry.find(name)
    model, session = variant.model, variant.session()
    session.prefill(
        chat_prompt_ids(model.tokenizer, [ChatMessage(one["role"], one["content"]) for one in messages])
    )
    stream = IncrementalDetokenizer(model.tokenizer)
    ids = session.generate(SamplingParams(temperature=0, max_new_tokens=tokens), model.stop_ids)
    return ("".join(map(stream.push, ids)) + stream.finish()).rstrip("\n")


@pytest.mark.parametrize("family", ["mmrec", "llama"])
def test_answers_are_those_of_the_engine_alone(server: Server, family: str) -> None:
    conversations = [[SYSTEM, user("Hello!" * number)] for number in range(1, 13)]
    expected = [alone(server, family, messages) for messages in conversations]
    with ThreadPoolExecutor(len(conversations)) as pool:
        answers = list(pool.map(lambda messages: ask(server, family, messages), conversations))
    assert [said(answer) for answer in answers] == expected


@pytest.mark.parametrize("family", ["mmrec", "llama"])
def test_a_conversation_is_not_read_twice_and_answers_the_same(server: Server, family: str) -> None:
    messages, known = [SYSTEM], 0
    for turn in range(4):
        messages.append(user(f"Question {turn} of {family}? " * (12 if family == "mmrec" else 4)))
        answer = ask(server, family, messages)
        assert said(answer) == alone(server, family, messages)
        usage = answer["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert cached >= known - MAX_KERNEL_TOKENS  # of the turn before, but for one pass
        known = usage["prompt_tokens"] - 3  # all but the beginning of the answer
        messages.append({"role": "assistant", "content": said(answer)})


def test_what_was_read_of_one_model_is_not_used_by_another(server: Server) -> None:
    messages = [SYSTEM, user("Whose state is this?")]
    for family in ("mmrec", "llama", "mmrec", "llama"):
        assert said(ask(server, family, messages)) == alone(server, family, messages)


def test_answers_that_end_before_anybody_looks_are_whole(server: Server) -> None:
    def texts(prompt: str | list[str]) -> list[str]:
        body = {
            "model": "mmrec",
            "prompt": prompt,
            "temperature": 0,
            "max_tokens": 2,
            "echo": True,
            "logprobs": 0,
        }
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=LONGEST).json()
        return [choice["text"] for choice in answer["choices"]]

    prompts = ["Once there was", "a " * 3000]
    alone = [text for prompt in prompts for text in texts(prompt)]
    for _ in range(3):
        assert texts(prompts) == alone


def test_answers_of_one_request_differ_by_seed_and_repeat_with_it(server: Server) -> None:
    options = {"n": 3, "temperature": 1.5, "seed": 5}
    first, second = (ask(server, "mmrec", [user("Hi")], **options) for _ in range(2))
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert texts == [choice["message"]["content"] for choice in second["choices"]]
    assert len(set(texts)) == 3
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2]
    assert first["usage"]["completion_tokens"] <= 3 * 24
    one = ask(server, "mmrec", [user("Hi")], temperature=1.5, seed=6)
    assert said(one) == texts[1]


def test_a_stop_string_ends_the_text_before_it_wherever_tokens_end(server: Server) -> None:
    whole = said(ask(server, "mmrec", [user("Stop!")], max_tokens=60))
    for start in range(2, len(whole) - 4, 3):
        stop = whole[start : start + 3]
        answer = ask(server, "mmrec", [user("Stop!")], max_tokens=60, stop=[stop, "never to be written"])
        assert said(answer) == whole[: whole.index(stop)].rstrip("\n")
        assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_full_context_is_refused_or_loses_its_oldest_turns(server: Server) -> None:
    turns = [user("A question that is long enough to fill something. " * 2) for _ in range(12)]
    messages = [SYSTEM] + [one for turn in turns for one in (turn, {"role": "assistant", "content": "Yes."})]
    messages += [user("And the last?")]
    body = {"model": "llama", "messages": messages, "max_tokens": 24, "temperature": 0}
    refused = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=LONGEST)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "truncation" in refused.json()["error"]["message"]
    answer = ask(server, "llama", messages, truncation="auto")
    kept = next(
        start
        for start in range(1, len(messages), 2)
        if len(chat_prompt_ids(*_chat(server, [SYSTEM, *messages[start:]]))) + 24 <= 512
    )
    assert said(answer) == alone(server, "llama", [SYSTEM, *messages[kept:]])
    assert answer["usage"]["prompt_tokens"] == len(
        chat_prompt_ids(*_chat(server, [SYSTEM, *messages[kept:]]))
    )
    whole = ask(server, "mmrec", messages)  # MM-Rec's is never full
    assert whole["usage"]["prompt_tokens"] == len(chat_prompt_ids(*_chat(server, messages)))


def test_dropping_turns_leaves_room_for_an_answer(server: Server) -> None:
    messages = [
        one
        for number in range(30)
        for one in (user(f"Question number {number}?"), {"role": "assistant", "content": "Yes."})
    ]
    options = {"max_tokens": None, "truncation": "auto", "logit_bias": _endless(server)}
    answer = ask(server, "llama", [*messages, user("Go on")], **options)
    assert answer["usage"]["completion_tokens"] >= 512 // 4


def _chat(
    server: Server, messages: list[dict[str, Any]]
) -> tuple[PreTrainedTokenizerBase, list[ChatMessage]]:
    tokenizer = server.context.registry.find("llama").model.tokenizer
    return tokenizer, [ChatMessage(one["role"], one["content"]) for one in messages]


def test_a_message_too_long_for_the_context_is_refused_whatever_is_dropped(server: Server) -> None:
    body = {"model": "llama", "messages": [user("word " * 2000)], "truncation": "auto"}
    refused = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=LONGEST)
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "context_length_exceeded"


def test_without_a_limit_an_answer_fills_the_context_or_the_servers_limit(server: Server) -> None:
    for family in ("mmrec", "llama"):
        answer = ask(server, family, [user("Go on")], max_tokens=None, logit_bias=_endless(server))
        usage = answer["usage"]
        assert answer["choices"][0]["finish_reason"] == "length"
        assert usage["completion_tokens"] == 256


def _endless(server: Server) -> dict[str, int]:
    [stop] = server.context.registry.find("llama").model.stop_ids
    return {str(stop): -100}


@pytest.fixture
def slow(chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Iterator[Server]:
    """A server whose answers may take very long, with little room."""
    model = small_model("mmrec", chat_tokenizer, scheduler=Scheduler(max_running=1, max_waiting=1))
    running = Server([model], tmp_path, limits=RequestLimits(max_tokens=10**9, timeout_seconds=LONGEST))
    yield running
    running.stop()


def endless(server: Server, stream: bool) -> dict[str, Any]:
    return {"model": "mmrec", "messages": [user("Go on")], "stream": stream, "logit_bias": _bias(server)}


def _bias(server: Server) -> dict[str, int]:
    [stop] = server.context.registry.find("mmrec").model.stop_ids
    return {str(stop): -100}


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_nobody_waits_for_ends(slow: Server, stream: bool) -> None:
    scheduler = slow.context.registry.models[0].scheduler
    with httpx.Client(base_url=slow.url, timeout=LONGEST) as client:
        if stream:
            with client.stream("POST", "/v1/chat/completions", json=endless(slow, True)) as answer:
                lines = answer.iter_lines()  # kept: httpx ends the answer where its iterator is dropped
                assert "assistant" in next(lines)
                until(lambda: scheduler.num_running == 1)
        else:
            patience = httpx.Timeout(LONGEST, read=0.3)
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json=endless(slow, False), timeout=patience)
    until(lambda: scheduler.num_running == scheduler.num_waiting == 0)


def post_endless(server: Server) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json=endless(server, False), timeout=LONGEST)


def limit(server: Server, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the answers to what is asked from now on take that long."""
    monkeypatch.setattr(server.context, "limits", replace(server.context.limits, timeout_seconds=seconds))


def test_a_full_queue_answers_429(slow: Server) -> None:
    scheduler = slow.context.registry.models[0].scheduler
    with ThreadPoolExecutor(2) as pool:
        writes = pool.submit(post_endless, slow)
        until(lambda: scheduler.num_running == 1)
        waits = pool.submit(post_endless, slow)
        until(lambda: scheduler.num_waiting == 1)
        refused = post_endless(slow)
        slow.stop()
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert [one.result().json()["error"]["code"] for one in (writes, waits)] == ["shutting_down"] * 2


def test_an_answer_that_takes_too_long_is_ended_with_408_also_in_the_queue(
    slow: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = slow.context.registry.models[0].scheduler
    limit(slow, monkeypatch, 1)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(post_endless, [slow] * 2))
    statuses = [(answer.status_code, answer.json()["error"]["code"]) for answer in answers]
    assert statuses == [(408, "timeout")] * 2
    until(lambda: scheduler.num_running == scheduler.num_waiting == 0)


def test_a_stream_that_fails_ends_with_an_error_of_openais_shape(
    slow: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(slow, monkeypatch, 2)
    with httpx.stream(
        "POST", f"{slow.url}/v1/chat/completions", json=endless(slow, True), timeout=LONGEST
    ) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert answer.status_code == 200
    assert '"error"' in lines[-1] and '"code":"timeout"' in lines[-1]
    assert lines[-1].count('"message"') == lines[-1].count('"param"') == lines[-1].count('"type"') == 1


def test_a_server_that_stops_tells_its_streams(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    running = Server(
        [small_model("mmrec", chat_tokenizer)],
        tmp_path,
        limits=RequestLimits(max_tokens=10**9, timeout_seconds=60),
    )
    url = f"{running.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=endless(running, True), timeout=LONGEST) as answer:
        lines = answer.iter_lines()
        next(lines)
        stopping = threading.Thread(target=running.stop)
        stopping.start()
        last = [line for line in lines if line][-1]
    stopping.join(LONGEST)
    assert '"code":"shutting_down"' in last


def test_a_server_that_writes_nothing_stops_without_waiting(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    running = Server([small_model("mmrec", chat_tokenizer)], tmp_path, grace_seconds=10 * LONGEST)
    assert said(ask(running, "mmrec", [user("Hello!")], max_tokens=3))
    running.stop()


def test_adapters_of_one_batch_write_each_what_they_write_alone(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = build_small("mmrec", vocabulary=len(chat_tokenizer)).float()
    with_adapters(model, tmp_path)
    folders = [str(tmp_path / name) for name in "ab"]
    running = Server([small_model("mmrec", chat_tokenizer, model=model, adapters=folders)], tmp_path)
    try:
        names, messages = ["mmrec", "mmrec:a", "mmrec:b"], [SYSTEM, user("Hello!")]
        listed = httpx.get(f"{running.url}/v1/models", timeout=LONGEST).json()["data"]
        assert [row["id"] for row in listed] == [*names, "mm-rec-100m"]
        expected = [alone(running, name, messages) for name in names]
        assert len(set(expected)) == 3
        for _ in range(2):  # the second time from what was read before, each from its own
            with ThreadPoolExecutor(9) as pool:
                answers = list(pool.map(lambda name: said(ask(running, name, messages)), names * 3))
            assert answers == expected * 3
    finally:
        running.stop()
