"""Sessions: a turn costs its own tokens alone, and what a session has read outlives the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from serving.server import Server, small_model
from transformers import PreTrainedTokenizerBase
from waiting import LONGEST

from mm_rec.data.conversations.conversation import ChatMessage, Conversation
from mm_rec.data.conversations.prompt_parts import continuation_text, turn_end_text
from mm_rec.data.conversations.rendering import conversation_text, prompt_text
from mm_rec.inference.generate import IncrementalDetokenizer, encode_rendered
from mm_rec.inference.sampler import SamplingParams
from mm_rec.inference.scheduler import Scheduler
from mm_rec.serving.access import AccessPolicy
from mm_rec.serving.api_keys import create_key
from mm_rec.serving.context import RequestLimits
from mm_rec.serving.session_folder import MARKER

SYSTEM = {"role": "system", "content": "Answer in a word."}
QUESTIONS = ("What is red?", "And what is blue?", "Neither?")
Start = Callable[..., Server]


@pytest.fixture
def start(chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Iterator[Start]:
    """Start a server in one folder, of which only one runs at a time."""
    running: list[Server] = []

    def make(**changes: Any) -> Server:
        for server in running:
            server.stop()
        running[:] = []
        scheduler = Scheduler()
        models = changes.pop("models", None) or [
            small_model(family, chat_tokenizer, context=512, scheduler=scheduler)
            for family in ("mmrec", "llama")
        ]
        running.append(Server(models, tmp_path, **changes))
        return running[0]

    yield make
    for server in running:
        server.stop()


def client(server: Server, key: str = "") -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=server.url, timeout=LONGEST, headers=headers)


def begin(http: httpx.Client, model: str, messages: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    answer = http.post("/v1/sessions", json={"model": model, "messages": messages})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ask(
    http: httpx.Client, model: str, session: str | None, *messages: dict[str, Any], **more: Any
) -> dict[str, Any]:
    body = {"model": model, "messages": list(messages), "temperature": 0, "max_tokens": 16, **more}
    answer = http.post("/v1/chat/completions", json=body | ({"session": session} if session else {}))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def turn(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_a_turn_is_held_to_the_limit_of_what_it_reads_itself(start: Start) -> None:
    with client(start(limits=RequestLimits(max_tokens=32, max_prompt_tokens=60))) as http:
        session = begin(http, "mmrec", [SYSTEM])["id"]
        read = [
            ask(http, "mmrec", session, turn(f"Question {n}?"))["usage"]["prompt_tokens"] for n in range(5)
        ]
        assert read[-1] > 60
        body = {"model": "mmrec", "session": session, "messages": [turn("Question? " * 40)]}
        refused = http.post("/v1/chat/completions", json=body)
        assert refused.status_code == 400 and "60 are the most" in refused.json()["error"]["message"]


@pytest.mark.parametrize("family", ["mmrec", "llama"])
def test_turns_answer_as_a_conversation_that_is_sent_whole(start: Start, family: str) -> None:
    """Also where the server was restarted before each turn, so that the state comes from its file."""
    server = start()
    with client(server) as http:
        session = begin(http, family, [SYSTEM])
    length, unbroken = session["length"], Unbroken(server, family)
    for question in QUESTIONS:
        server = start()
        with client(server) as http:
            answer = ask(http, family, session["id"], turn(question))
            found = http.get(f"/v1/sessions/{session['id']}").json()
        assert answer["choices"][0]["message"]["content"] == unbroken.ask(question)
        usage = answer["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == length
        length = found["length"]
        assert length == unbroken.session.length > usage["prompt_tokens"] + usage["completion_tokens"]
        assert found["bytes_per_token"] == (0 if family == "mmrec" else 2 * 2 * 2 * 16 * 4)
        if family == "mmrec":
            assert found["bytes"] == session["bytes"]
        else:
            assert found["bytes"] > session["bytes"]
    files = {path.name for path in (server.folder / "sessions").iterdir()} - {MARKER}
    assert len(files) == 1  # the states of earlier turns are gone


class Unbroken:
    """The same conversation on a session of the engine that is never saved."""

    def __init__(self, server: Server, family: str) -> None:
        model = server.context.registry.find(family).model
        self.tokenizer, self.stop_ids, self.session = (
            model.tokenizer,
            model.stop_ids,
            model.engine.session({}),
        )
        self.text = ""

    def begin(self) -> None:
        """Read the system message, as POST /v1/sessions does."""
        begun = Conversation((ChatMessage(**SYSTEM),), ())
        self.session.prefill(encode_rendered(self.tokenizer, conversation_text(self.tokenizer, begun)))

    def ask(self, question: str) -> str:
        if not self.session.length:
            text = prompt_text(self.tokenizer, [ChatMessage(**SYSTEM), ChatMessage("user", question)])
        else:
            text = continuation_text(self.tokenizer, [ChatMessage("user", question)])
        self.session.prefill(encode_rendered(self.tokenizer, text))
        ids = list(self.session.generate(SamplingParams(temperature=0, max_new_tokens=16), self.stop_ids))
        reply = self.tokenizer.decode(ids, skip_special_tokens=False)
        self.session.append(encode_rendered(self.tokenizer, turn_end_text(self.tokenizer, reply)))
        stream = IncrementalDetokenizer(self.tokenizer)
        return ("".join(map(stream.push, ids)) + stream.finish()).rstrip("\n")


@pytest.mark.parametrize("family", ["mmrec", "llama"])
def test_a_state_from_its_file_is_the_unbroken_one_bit_for_bit(start: Start, family: str) -> None:
    server = start()
    with client(server) as http:
        session = begin(http, family, [SYSTEM])
        ask(http, family, session["id"], turn(QUESTIONS[0]))
    variant = server.context.registry.find(family)
    with server.context.sessions.turn(None, session["id"], variant) as unbroken:
        kept = unbroken.session
    server.context.sessions._in_memory.clear()
    with server.context.sessions.turn(None, session["id"], variant) as from_file:
        loaded = from_file.session
    for one in (kept, loaded):
        one.prefill(list(range(5, 45)))
    assert torch.equal(kept.next_logits(), loaded.next_logits())


def test_a_fork_goes_its_own_way(start: Start) -> None:
    with client(start()) as http:
        session = begin(http, "mmrec", [SYSTEM])
        ask(http, "mmrec", session["id"], turn(QUESTIONS[0]))
        fork = http.post(f"/v1/sessions/{session['id']}/fork").json()
        assert fork["id"] != session["id"]
        first, second = (ask(http, "mmrec", one["id"], turn(QUESTIONS[1])) for one in (session, fork))
        assert first["choices"] == second["choices"]
        ask(http, "mmrec", fork["id"], turn("Something else entirely"))
        lengths = [http.get(f"/v1/sessions/{one['id']}").json()["length"] for one in (session, fork)]
        assert lengths[0] < lengths[1]
        listed = http.get("/v1/sessions", params={"limit": 1}).json()
        assert [one["id"] for one in listed["data"]] == [fork["id"]] and listed["has_more"]
        rest = http.get("/v1/sessions", params={"after": fork["id"]}).json()
        assert [one["id"] for one in rest["data"]] == [session["id"]] and not rest["has_more"]
        assert http.delete(f"/v1/sessions/{fork['id']}").json()["deleted"] is True
        assert http.get(f"/v1/sessions/{fork['id']}").status_code == 404
        assert http.delete(f"/v1/sessions/{fork['id']}").status_code == 404


def test_an_empty_session_reads_its_first_turn_with_tools(start: Start) -> None:
    tools = [
        {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    ]
    with client(start()) as http:
        session = begin(http, "mmrec")
        assert session["length"] == 0
        told = ask(
            http, "mmrec", session["id"], turn("Look!"), tools=tools, tool_choice="required", max_tokens=60
        )
        call = told["choices"][0]["message"]["tool_calls"][0]
        assert call["function"]["name"] == "look"
        result = {"role": "tool", "content": "a tree", "tool_call_id": call["id"]}
        after = ask(http, "mmrec", session["id"], result)
        assert after["usage"]["prompt_tokens_details"]["cached_tokens"] > told["usage"]["prompt_tokens"]


def test_a_turn_that_is_not_finished_changes_nothing(start: Start) -> None:
    server = start(limits=RequestLimits(max_tokens=10**9, timeout_seconds=60))
    [stop] = server.context.registry.find("mmrec").model.stop_ids
    with client(server) as http:
        session = begin(http, "mmrec", [SYSTEM])
        body = {"model": "mmrec", "messages": [turn("Go on")], "session": session["id"], "stream": True}
        body["logit_bias"] = {str(stop): -100}
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()  # kept: httpx ends the answer where its iterator is dropped
            next(lines)
            busy = http.post("/v1/chat/completions", json=body)
            assert (busy.status_code, busy.json()["error"]["code"]) == (409, "session_busy")
        answered = http.post("/v1/chat/completions", json={**body, "stream": False, "max_tokens": 1})
        while answered.status_code == 409:  # until the server has seen that the client is gone
            answered = http.post("/v1/chat/completions", json={**body, "stream": False, "max_tokens": 1})
        assert answered.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == session["length"]


def test_a_session_belongs_to_its_model_and_the_same_weights(
    start: Start, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    with client(start()) as http:
        session = begin(http, "mmrec", [SYSTEM])
        for model, field, status in (("llama", "model", 400), ("nobody", "model", 404)):
            body = {"model": model, "messages": [turn("Hi")], "session": session["id"]}
            refused = http.post("/v1/chat/completions", json=body)
            assert (refused.status_code, refused.json()["error"]["param"]) == (status, field)
    other = small_model("mmrec", chat_tokenizer)
    with torch.no_grad():
        other.engine.model.get_input_embeddings().weight.mul_(1.01)
    changed = small_model("mmrec", chat_tokenizer, model=other.engine.model, scheduler=other.scheduler)
    with client(start(models=[changed])) as http:
        body = {"model": "mmrec", "messages": [turn("Hi")], "session": session["id"]}
        refused = http.post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "session_stale")
        assert "another model" in refused.json()["error"]["message"]
        assert ".safetensors" not in refused.text  # no path of the server's


def test_sessions_and_responses_of_others_do_not_exist(start: Start) -> None:
    server = start(policy=AccessPolicy(require_keys=True))
    mine, theirs = (create_key(server.context.store, name)[0] for name in ("mine", "theirs"))
    with client(server, mine) as http:
        session = begin(http, "mmrec", [SYSTEM])
        response = http.post(
            "/v1/responses", json={"model": "mmrec", "input": "Hi", "max_output_tokens": 3}
        ).json()
    with client(server, theirs) as http:
        for path in (f"/v1/sessions/{session['id']}", f"/v1/responses/{response['id']}"):
            assert http.get(path).status_code == http.delete(path).status_code == 404
        assert http.post(f"/v1/sessions/{session['id']}/fork").status_code == 404
        assert http.get("/v1/sessions").json()["data"] == []
        body = {"model": "mmrec", "input": "And?", "previous_response_id": response["id"]}
        assert http.post("/v1/responses", json=body).status_code == 404
    with client(server, mine) as http:
        assert http.get(f"/v1/responses/{response['id']}").status_code == 200
        assert http.get(f"/v1/sessions/{session['id']}").status_code == 200


def test_a_response_goes_on_without_reading_again(start: Start) -> None:
    with client(start()) as http:
        red = {
            "type": "json_schema",
            "name": "colour",
            "schema": {"enum": ["red"]},
        }  # text that can be sent again
        options = {"model": "mmrec", "temperature": 0, "max_output_tokens": 60, "text": {"format": red}}
        first = http.post("/v1/responses", json={**options, "input": QUESTIONS[0]}).json()
        body = {**options, "input": QUESTIONS[1], "previous_response_id": first["id"]}
        second = http.post("/v1/responses", json=body).json()
        read = first["usage"]["total_tokens"]
        assert second["usage"]["input_tokens_details"]["cached_tokens"] >= read
    with client(start()) as http:  # nothing is in memory: it is read again, and answers the same
        again = http.post("/v1/responses", json=body).json()
        assert again["usage"]["input_tokens_details"]["cached_tokens"] == 0
        assert again["output"][0]["content"][0]["text"] == second["output"][0]["content"][0]["text"]


def test_a_new_folder_of_sessions_is_its_users_alone(start: Start) -> None:
    server = start()
    with client(server) as http:
        begin(http, "mmrec", [SYSTEM])
    assert (server.folder / "sessions").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("bad", ["../../etc/passwd", "sess_" + "0" * 32, "", "x" * 5000, "sess_\u0000"])
def test_no_name_of_a_session_reaches_the_file_system(start: Start, bad: str) -> None:
    with client(start()) as http:
        body = {"model": "mmrec", "messages": [turn("Hi")], "session": bad}
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 404
        assert answer.json()["error"]["param"] == "session"
