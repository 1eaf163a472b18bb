"""Models and adapters are loaded, replaced and unloaded while the server answers, and nobody else notices."""

from __future__ import annotations

import gc
import itertools
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from peft_folders import write_adapter
from serving.server import Server, small_model
from small_models import build_small
from transformers import PreTrainedTokenizerBase
from waiting import LONGEST, until

from mm_rec.data.conversations.conversation import ChatMessage
from mm_rec.data.conversations.rendering import chat_prompt_ids
from mm_rec.errors import CheckpointError, ConfigError
from mm_rec.inference.generate import generate_text
from mm_rec.inference.manager import UnknownModelError, open_model
from mm_rec.inference.sampler import SamplingParams
from mm_rec.inference.scheduler import Scheduler
from mm_rec.models.loading import save_model
from mm_rec.serving.context import RequestLimits
from mm_rec.serving.model_registry import ModelVariant

MESSAGES: Any = [{"role": "user", "content": "Hello!"}]
ENDLESS = 10**6  # tokens


@pytest.fixture(scope="module")
def folders(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The folders of two models that answer otherwise, "first" and "second", and of an "adapter" of the first."""
    parent = tmp_path_factory.mktemp("models")
    for name, family in (("first", "llama"), ("second", "mmrec")):
        save_model(build_small(family, vocabulary=len(chat_tokenizer)).float(), chat_tokenizer, parent / name)
    write_adapter(parent / "first", parent / "adapter", target_modules=["q_proj", "v_proj"])
    return {name: parent / name for name in ("first", "second", "adapter")}


@pytest.fixture
def running(chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Iterator[Server]:
    """A server of one model, "stays", whose steps take long enough that an answer is never over at once."""
    scheduler = Scheduler(max_running=4)
    server = Server(
        [small_model("mmrec", chat_tokenizer, name="stays", scheduler=scheduler)], tmp_path,
        limits=RequestLimits(max_tokens=ENDLESS, timeout_seconds=LONGEST),
    )  # fmt: skip
    step = scheduler.step

    def slow_step() -> None:
        time.sleep(0.002)
        step()

    scheduler.step = slow_step  # type: ignore[method-assign]
    yield server
    server.stop()


@pytest.fixture
def client(running: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=LONGEST) as opened:
        yield opened


def ask(client: OpenAI, model: str, max_tokens: int = 16) -> str:
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, max_tokens=max_tokens
    )
    return str(answer.choices[0].message.content)


def alone(
    folder: Path, adapters: list[str] | None = None, tokens: int = 16, bias: dict[int, float] | None = None
) -> str:
    """What a model answers where nobody else is."""
    loaded = open_model(folder, adapters or [], "cpu")
    session = loaded.engine.session()
    session.prefill(chat_prompt_ids(loaded.tokenizer, [ChatMessage("user", MESSAGES[0]["content"])]))
    sampling = SamplingParams(temperature=0, max_new_tokens=tokens, logit_bias=bias or {})
    return "".join(generate_text(session, loaded.tokenizer, sampling)).rstrip("\n")


def served(client: OpenAI) -> list[str]:
    return [model.id for model in client.models.list() if model.id != "mm-rec-100m"]


class Others:
    """Ask one model over and over while something else is done; every answer must be the same."""

    def __init__(self, client: OpenAI, model: str) -> None:
        self._client, self._model = client, model
        self._expected = ask(client, model)
        self._answers: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._answers.append(ask(self._client, self._model))

    def __enter__(self) -> Others:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(LONGEST)
        assert self._answers and set(self._answers) == {self._expected}


def test_a_model_is_loaded_replaced_and_unloaded_while_others_are_answered(
    running: Server, client: OpenAI, folders: dict[str, Path]
) -> None:
    expected = {name: alone(folders[name]) for name in ("first", "second")}
    assert len(set(expected.values())) == 2
    with pytest.raises(openai.NotFoundError):
        ask(client, "new")
    with Others(client, "stays"):
        running.manager.load("new", folders["first"])
        assert served(client) == ["stays", "new"] and ask(client, "new") == expected["first"]
        running.manager.replace("new", folders["second"]).result(LONGEST)
        assert served(client) == ["stays", "new"] and ask(client, "new") == expected["second"]
        running.manager.unload("new").result(LONGEST)
        assert served(client) == ["stays"]
        with pytest.raises(openai.NotFoundError, match="there is no model 'new' here"):
            ask(client, "new")


def test_an_answer_that_was_begun_on_the_old_model_ends_on_it(
    running: Server, client: OpenAI, folders: dict[str, Path]
) -> None:
    running.manager.load("new", folders["second"])
    [stop] = running.context.registry.find("new").model.stop_ids
    stream = client.chat.completions.create(
        model="new", messages=MESSAGES, temperature=0, max_tokens=ENDLESS, stream=True,
        logit_bias={str(stop): -100},
    )  # fmt: skip
    pieces = (chunk.choices[0].delta.content or "" for chunk in stream)
    text = next(piece for piece in pieces if piece)
    released = running.manager.replace("new", folders["first"])
    assert ask(client, "new") == alone(folders["first"])  # the new one at once
    text += "".join(itertools.islice(pieces, 5))  # and the old one goes on
    assert running.manager.num_leases == {"stays": 0, "new": 0} and not released.done()
    expected = alone(folders["second"], tokens=2 * len(text), bias={stop: -100.0})
    assert expected.startswith(text.rstrip("\n"))
    stream.close()
    released.result(LONGEST)


def test_leases_count_who_uses_a_model(running: Server, client: OpenAI) -> None:
    manager = running.manager
    [stop] = running.context.registry.find("stays").model.stop_ids
    with client.chat.completions.create(
        model="mm-rec-100m", messages=MESSAGES, max_tokens=ENDLESS, stream=True, logit_bias={str(stop): -100},
    ) as stream:  # fmt: skip
        next(iter(stream))
        assert manager.num_leases == {"stays": 1}
        with manager.lease("stays"):
            assert manager.num_leases == {"stays": 2}
    until(lambda: manager.num_leases == {"stays": 0})


def test_an_adapter_is_loaded_and_unloaded_while_its_base_answers(
    running: Server, client: OpenAI, folders: dict[str, Path]
) -> None:
    adapter = str(folders["adapter"])
    adapted = alone(folders["first"], [adapter])
    running.manager.load("base", folders["first"])
    assert ask(client, "base") == alone(folders["first"]) != adapted
    with Others(client, "base"), Others(client, "stays"):
        running.manager.load_adapter("base", adapter).result(LONGEST)
        assert served(client) == ["stays", "base", "base:adapter"]
        assert ask(client, "base:adapter") == adapted
        running.manager.unload_adapter("base", "adapter").result(LONGEST)
        assert served(client) == ["stays", "base"]
        with pytest.raises(openai.NotFoundError):
            ask(client, "base:adapter")


@pytest.mark.parametrize("adapted", [False, True])
def test_the_memory_of_an_unloaded_model_is_freed(
    running: Server, client: OpenAI, folders: dict[str, Path], adapted: bool
) -> None:
    manager = running.manager
    manager.load("new", folders["first"], [str(folders["adapter"])] if adapted else [])
    model = weakref.ref(running.context.registry.find("new").model.engine.model)
    gc.collect()
    gc.disable()
    try:
        session = httpx.post(
            f"{running.url}/v1/sessions", json={"model": "new", "messages": MESSAGES}, timeout=LONGEST
        ).json()
        for name in ["new", "new:adapter"][: 1 + adapted]:
            ask(client, name)
        with manager.lease("new") as leased:  # a thread that keeps a session when its client has given up
            variant, late = ModelVariant("new", leased, None), leased.engine.session()
            late.prefill([5, 6])
        manager.unload("new").result(LONGEST)
        running.context.sessions.create(None, variant, late)
        del leased, variant, late
        until(lambda: model() is None)
    finally:
        gc.enable()
    manager.load("new", folders["first"], [str(folders["adapter"])] if adapted else [])
    answer = client.chat.completions.create(
        model="new", messages=MESSAGES, max_tokens=3, extra_body={"session": session["id"]}
    )
    assert answer.usage is not None and answer.usage.prompt_tokens > session["length"]  # from its file


def test_a_request_that_waits_and_is_given_up_does_not_hold_its_model(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, folders: dict[str, Path]
) -> None:
    """The only place of the engine is taken: what waits for it is of the model that is unloaded."""
    scheduler = Scheduler(max_running=1)
    models = [small_model("mmrec", chat_tokenizer, name="stays", scheduler=scheduler)]
    server = Server(models, tmp_path, limits=RequestLimits(max_tokens=10**9, timeout_seconds=LONGEST))
    try:
        server.manager.load("new", folders["first"])
        model = weakref.ref(server.context.registry.find("new").model.engine.model)
        bias = {str(stop): -100 for stop in models[0].stop_ids}
        body = {"messages": MESSAGES, "logit_bias": bias, "stream": True}
        url = f"{server.url}/v1/chat/completions"
        with httpx.stream("POST", url, json={**body, "model": "stays"}, timeout=LONGEST) as writes:
            lines = writes.iter_lines()  # kept: httpx ends the answer where its iterator is dropped
            next(lines)
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(
                    url,
                    json={**body, "model": "new", "stream": False},
                    timeout=httpx.Timeout(LONGEST, read=0.5),
                )
            until(lambda: server.manager.num_leases["new"] == 0)
            server.manager.unload("new").result(LONGEST)
            assert scheduler.num_running == 1 and scheduler.num_waiting == 0
            until(lambda: model() is None)
    finally:
        server.stop()


def test_what_cannot_be_loaded_leaves_what_serves_as_it_is(
    running: Server, client: OpenAI, folders: dict[str, Path], tmp_path: Path
) -> None:
    broken = shutil.copytree(folders["first"], tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    running.manager.load("new", folders["first"])
    expected = ask(client, "new")
    with Others(client, "stays"):
        for fails in (
            lambda: running.manager.load("other", broken),
            lambda: running.manager.replace("new", broken),
            lambda: running.manager.load_adapter("new", str(broken)),
        ):
            with pytest.raises(CheckpointError, match="broken"):
                fails()
        with pytest.raises(ConfigError, match="two models have the name 'new'"):
            running.manager.load("new", folders["second"])
        for unknown in (running.manager.unload, lambda name: running.manager.replace(name, folders["first"])):
            with pytest.raises(UnknownModelError, match="there is no model 'other'; there are stays, new"):
                unknown("other")
        assert served(client) == ["stays", "new"] and ask(client, "new") == expected


def test_the_first_model_stays_the_first_until_none_is_left(
    running: Server, client: OpenAI, folders: dict[str, Path]
) -> None:
    running.manager.load("other", folders["second"])
    running.manager.replace("stays", folders["first"]).result(LONGEST)
    assert served(client) == ["stays", "other"]
    assert ask(client, "mm-rec-100m") == alone(folders["first"])
    for name in ("stays", "other"):
        running.manager.unload(name).result(LONGEST)
    assert not served(client)
    with pytest.raises(openai.NotFoundError, match="there are none"):
        ask(client, "mm-rec-100m")
    answer = httpx.post(f"{running.url}/tokenize", json={"prompt": "Hi"}, timeout=LONGEST)
    assert answer.status_code == 404
    running.manager.load("first", folders["first"])
    assert ask(client, "mm-rec-100m") == alone(folders["first"])
