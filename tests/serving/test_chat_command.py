"""`mmrec chat --url`: a conversation with a server of ours, and with servers that answer as none should."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import typer
from rich.console import Console
from serving.server import Server, small_model
from transformers import PreTrainedTokenizerBase
from typer.testing import CliRunner
from waiting import LONGEST, until

from mm_rec.cli import chat
from mm_rec.cli.chat_loop import chat_turn
from mm_rec.errors import ConfigError, MissingExtraError, UserError
from mm_rec.inference.remote_chat import RemoteChat
from mm_rec.inference.sampler import SamplingParams
from mm_rec.serving.access import AccessPolicy
from mm_rec.serving.api_keys import create_key

SAMPLING = SamplingParams(temperature=0, top_p=1.0, max_new_tokens=200)

app = typer.Typer()
app.command()(chat.chat)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def run(*arguments: object, typed: str = "") -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


Talk = Callable[..., RemoteChat]


@pytest.fixture
def talk() -> Iterator[Talk]:
    """Begin a conversation with a server, which is closed in the end."""
    begun = []

    def begin(url: str, model: str | None = None, **options: Any) -> RemoteChat:
        begun.append(RemoteChat(url, model, SAMPLING, **options))
        return begun[-1]

    yield begin
    for one in begun:
        one.close()


class Scripted(http.server.ThreadingHTTPServer):
    """Answers every request with one status, headers and body; `asked` has the bodies of the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.status, self.more, self.body, self.asked = 200, {}, b"", []  # type: ignore[var-annotated]

    def say(self, *pieces: Any, status: int = 200, end: str = "data: [DONE]\n\n", **headers: str) -> None:
        """Answer with a stream of these objects, or with a text as it is."""
        events = [piece if isinstance(piece, str) else f"data: {json.dumps(piece)}\n\n" for piece in pieces]
        self.status, self.body = status, ("".join(events) + end).encode()
        self.more = {name.replace("_", "-"): value for name, value in headers.items()}


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Scripted

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.do_GET()

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        length = {"Content-Length": str(len(self.server.body))}
        for name, value in {"Content-Type": "text/event-stream", **length, **self.server.more}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    with Scripted() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def piece(content: str | None, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}]}


def test_the_first_model_of_a_server_answers_a_whole_conversation(server: Server, tmp_path: Path) -> None:
    typed = f"Ayşe kim?\nNe görüyor?\n/save {tmp_path}/talk.json\n/reset\n/save {tmp_path}/none.json\n/exit\n"
    options = ("--system", "Kısa.", "--temperature", 0, "--top-p", 1, "--max-new-tokens", 12)
    output = run("--url", f"{server.url}/v1", *options, typed=typed)
    assert output.startswith(f"mmrec at {server.url}/v1\n") and "is forgotten" in output
    messages = json.loads((tmp_path / "talk.json").read_text("utf-8"))["messages"]
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        for end in (2, 4):
            answer = client.chat.completions.create(
                model="mmrec", messages=messages[:end], temperature=0, max_tokens=12
            )
            assert answer.choices[0].message.content == messages[end]["content"]
    none = json.loads((tmp_path / "none.json").read_text("utf-8"))["messages"]
    assert none == [{"role": "system", "content": "Kısa."}]


def test_a_named_model_and_options_beyond_openais(server: Server) -> None:
    options = ("--temperature", 2, "--top-k", 1, "--min-p", 0.1, "--max-new-tokens", 8, "--seed")
    typed = ("llama", "--url", f"{server.url}/v1", *options)
    first, again = (run(*typed, seed, typed="Selam\n") for seed in (1, 2))
    assert first == again and first.startswith("llama at")  # one likeliest token alone, whatever the seed


def test_only_what_was_given_is_sent_beyond_openais_fields(scripted: Scripted) -> None:
    scripted.say(piece("Evet"), piece(None, "stop"))
    run("m", "--url", scripted.url, "--seed", 7, typed="Selam\n")
    run("m", "--url", scripted.url, "--top-k", 0, "--repetition-penalty", 1.1, typed="Selam\n")
    expected = {
        "model": "m", "messages": [{"role": "user", "content": "Selam"}], "stream": True,
        "temperature": 0.7, "top_p": 0.95, "max_tokens": 400,
    }  # fmt: skip
    assert scripted.asked == [
        {**expected, "seed": 7},
        {**expected, "top_k": 0, "repetition_penalty": 1.1},
    ]


class PressesCtrlC:
    """A terminal at which Ctrl-C is pressed when something has been written."""

    def __init__(self, after: int) -> None:
        self.text, self._left = "", after

    def write(self, text: str) -> int:
        self.text += text
        self._left -= bool(text.strip())
        if text.strip() and self._left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return len(text)

    def flush(self) -> None:
        pass


def test_ctrl_c_ends_the_answer_and_keeps_what_came(server: Server, talk: Talk, unhurried: None) -> None:
    conversation, terminal = talk(f"{server.url}/v1"), PressesCtrlC(after=3)
    handler = signal.getsignal(signal.SIGINT)
    chat_turn("Ayşe kim?", conversation, Console(file=terminal))  # type: ignore[arg-type]
    assert signal.getsignal(signal.SIGINT) is handler
    assert [message.role for message in conversation.messages] == ["user", "assistant"]
    kept = conversation.messages[1].content
    whole = "".join(talk(f"{server.url}/v1").send("Ayşe kim?"))
    assert whole.startswith(kept) and len(kept) < len(whole)
    scheduler = server.context.registry.models[0].scheduler
    until(lambda: not scheduler.num_running)  # the server has stopped writing
    chat_turn("Ne?", conversation, Console(quiet=True))
    assert len(conversation.messages) == 4


def test_ctrl_c_does_not_wait_for_a_server_that_says_nothing(talk: Talk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        conversation = talk(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", "m")

        def press() -> None:
            with silent.accept()[0] as asked:
                asked.recv(4096)
                os.kill(os.getpid(), signal.SIGINT)
                over.wait(LONGEST)  # the connection stays open: nothing else ends the wait

        over, person = threading.Event(), threading.Thread(target=press)
        person.start()
        chat_turn("Selam", conversation, Console(quiet=True))
        over.set()
        person.join()
    assert conversation.messages == []


def test_a_server_with_keys(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model("mmrec", chat_tokenizer)
    guarded = Server([model], tmp_path, policy=AccessPolicy(require_keys=True))
    try:
        with pytest.raises(ConfigError, match=r"asks for a key \(401\).*OPENAI_API_KEY is not set.*export"):
            talk(f"{guarded.url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-0123456789")
        with pytest.raises(ConfigError, match="holds a key that was refused") as error:
            talk(f"{guarded.url}/v1")
        assert "0123456789" not in str(error.value)
        monkeypatch.setenv("OPENAI_API_KEY", create_key(guarded.context.store, "me")[0])
        assert "".join(talk(f"{guarded.url}/v1").send("Selam"))
    finally:
        guarded.stop()


def test_wrong_addresses_and_names(server: Server, talk: Talk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ConfigError, match=r"nothing answers there \(.*refused.*mmrec serve.*--url"):
        talk(f"http://127.0.0.1:{port}/v1")
    with pytest.raises(ConfigError, match=r"is not a URL such as http://127.0.0.1:8000/v1"):
        talk("127.0.0.1:8000")
    for wrong in ("http://127.0.0.1:x/v1", "http://127.0.0.1:99999/v1", "http://[::1/v1", "http://a\0b/v1"):
        with pytest.raises(ConfigError, match="is not a URL such as"):
            talk(wrong)
    with pytest.raises(ConfigError, match=r"not the URL of an API \(404\).*usually ends with /v1"):
        talk(server.url)
    conversation = talk(f"{server.url}/v1", "absent")
    with pytest.raises(ConfigError, match=r"has no model 'absent'.*there are mmrec, llama"):
        "".join(conversation.send("Selam"))
    assert conversation.messages == []


def test_a_full_context_is_told_with_both_remedies(server: Server, talk: Talk) -> None:
    conversation = talk(f"{server.url}/v1", "llama")
    with pytest.raises(UserError, match=r"too long for the model: .*512.*/reset.*--when-full drop"):
        "".join(conversation.send("uzun " * 300))
    assert conversation.messages == []


@pytest.mark.parametrize(
    ("status", "body", "headers", "said"),
    [
        (429, '{"error": {"message": "slow down"}}', {"Retry_After": "7"}, r"\(429\): slow down. .* in 7 seconds"),
        (429, "", {}, r"too much to do \(429\).*Try again later"),
        (500, '{"error": {"message": "no memory"}}', {}, r"the server failed \(500\): no memory. Try again"),
        (503, "<html>busy</html>", {}, r"the server failed \(503\)"),
        (403, '{"error": {"message": "not you"}}', {}, r"does not let this key use 'm' \(403\): not you"),
        (400, '{"error": {"message": "no top_k here"}}', {}, r"refuses the request for 'm' \(400\): no top_k here"),
        (200, "<html>a page</html>", {"Content_Type": "text/html"}, "not a chat completion.*ends with /v1"),
        (200, "data: {broken\n\n", {}, "not a chat completion"),
        (200, "data: [1, 2]\n\n", {}, "not a chat completion"),
        (200, 'data: {"error": {"message": "out of tokens"}}\n\n', {}, "the server failed: out of tokens"),
    ],
)  # fmt: skip
def test_what_a_server_answers_wrongly_is_told_and_changes_nothing(
    scripted: Scripted, talk: Talk, status: int, body: str, headers: dict[str, str], said: str
) -> None:
    conversation = talk(scripted.url, "m")
    scripted.say(body, status=status, end="", **headers)
    with pytest.raises(UserError, match=said):
        "".join(conversation.send("Selam"))
    assert conversation.messages == []
    scripted.say(piece("Evet"), piece(None, "stop"))
    assert "".join(conversation.send("Selam")) == "Evet"


@pytest.mark.parametrize("length", [None, "100000"])
def test_an_answer_that_breaks_off_is_kept_as_far_as_it_came(
    scripted: Scripted, talk: Talk, length: str | None
) -> None:
    """With a length more was promised; without one the end of the stream says nothing."""
    scripted.say(
        piece("Bir "), piece("iki"), end="", **({} if length is None else {"Content_Length": length})
    )
    conversation, console = talk(scripted.url, "m"), Console(quiet=True)
    with pytest.raises(UserError, match=r"the answer broke off .* is kept"):
        chat_turn("Say", conversation, console)
    assert [message.content for message in conversation.messages] == ["Say", "Bir iki"]


def test_what_a_terminal_must_not_get_does_not_reach_it(scripted: Scripted, tmp_path: Path) -> None:
    scripted.say(piece("a\x1b[2Jb\x9b\ud83dc\td\r\x07"), piece(None, "stop"))
    assert "> a[2Jbc\td\n" in run("m", "--url", scripted.url, typed="Selam\n")
    scripted.say(json.dumps({"error": {"message": "a\x1b[2Jb"}}), status=400, end="")
    assert "(400): a[2Jb" in run("m", "--url", scripted.url, typed="Selam\n")


def test_a_message_that_is_no_unicode_is_refused(scripted: Scripted, talk: Talk) -> None:
    with pytest.raises(UserError, match="Set the terminal to UTF-8"):
        "".join(talk(scripted.url, "m").send("a\udcffb"))
    assert scripted.asked == []


def test_a_server_without_a_list_of_models_needs_a_name(scripted: Scripted, talk: Talk) -> None:
    for body in ('{"object": "list", "data": []}', "{}", "<html>"):
        scripted.say(body, end="", Content_Type="application/json" if body != "<html>" else "text/html")
        with pytest.raises(ConfigError, match=r"lists no model. Name one: mmrec chat --url \S+ MODEL"):
            talk(scripted.url)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--adapter", "x"), ("--device", "auto"), ("--precision", "float32"), ("--session", "x")],
)
def test_options_of_a_model_here_are_refused_with_a_server(option: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} cannot be used with --url: .*Leave it out"):
        run("--url", "http://127.0.0.1:9/v1", option, value)


def test_neither_a_model_nor_a_server_and_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="name a model"):
        run()
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=re.escape("mm-rec[openai]")):
        run("--url", "http://127.0.0.1:9/v1")
