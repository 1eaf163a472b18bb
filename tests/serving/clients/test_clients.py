"""Real clients, each in an environment of its own, in their default use, against a real server.

`scripts/` asks through the client and says what came; what it must be, is here. A case is named for what is asked
(`structured`, `turns` …) and, after that, for the client's way to ask it.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import torch
from serving.clients.clients import CLIENTS
from serving.clients.environments import node_environment, python_environment
from serving.clients.obliging import obliging
from serving.server import Server, small_model
from transformers import PreTrainedTokenizerBase
from waiting import LONGEST

pytestmark = pytest.mark.seldom(
    covers=[
        "mm_rec/serving/*",
        "mm_rec/inference/grammar/*",
        "mm_rec/tokenizers/templates/*",
        "tests/serving/clients/*",
    ]
)
SCRIPTS = Path(__file__).parent / "scripts"
QUESTIONS = ["Hello!", "What does she see?", "Ne görüyor?"]
SHORT, LONG = 24, 250  # tokens
CITY = {"enum": ["Muş", "Van"]}
PLACE = {
    "type": "object",
    "properties": {"city": CITY, "day": {"enum": ["today", "tomorrow"]}},
    "required": ["city", "day"],
    "additionalProperties": False,
}
REPORT = {
    "type": "object",
    "properties": {"city": CITY, "days": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
SCHEMAS = {
    "structured": REPORT,
    "json_object": {"type": "object"},
    "schema_of_records": {
        "properties": {"degrees": {"type": "object", "additionalProperties": {"type": "number"}}},
        "required": ["degrees"],
    },
    "schema_of_sets": {
        "properties": {"days": {"type": "array", "items": {"enum": ["Mon", "Tue"]}, "uniqueItems": True}},
        "required": ["days"],
    },
    "schema_of_formats": {
        "properties": {
            "mail": {"type": "string", "pattern": "^[^@]+@[^@]+$"},
            "page": {"type": "string", "pattern": ":"},
            "time": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$"},
            "number": {"type": "integer"},
        },
        "required": ["mail", "page", "time", "number"],
    },
    "schema_of_forms": {
        "properties": {
            **{name: {"type": "string"} for name in ("file", "secret", "raw")},
            "count": {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
            "large": {"type": "integer", "minimum": -(2**64), "maximum": 2**64},
        },
        "required": ["file", "secret", "raw", "count", "large"],
    },
}


@pytest.fixture(scope="module")
def served(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server of one small random model, which calls and answers as asked."""
    with obliging(chat_tokenizer):
        running = Server([small_model("mmrec", chat_tokenizer)], tmp_path_factory.mktemp("server"))
        yield running
        running.stop()


@pytest.fixture(scope="module")
def ask(served: Server, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What a client's script says of each of its cases; it is run once."""

    @functools.cache
    def run(client: str) -> dict[str, Any]:
        script, cases = CLIENTS[client].script, CLIENTS[client].cases
        folder = tmp_path_factory.mktemp(client)
        shutil.copytree(SCRIPTS, folder, dirs_exist_ok=True)  # where JavaScript looks for what it imports
        command = [*_interpreter(client, folder), script, *cases]
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1",
            "OPENAI_BASE_URL": f"{served.url}/v1", "OPENAI_API_KEY": "none", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        result = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LONGEST, check=False
        )
        assert result.returncode == 0, result.stderr
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    return run


def _interpreter(client: str, folder: Path) -> list[str | Path]:
    """What runs a client's script in that folder."""
    if CLIENTS[client].script.endswith(".py"):
        return [python_environment(client) / "bin" / "python"]
    node, modules = node_environment()
    (folder / "node_modules").symlink_to(modules)
    return [node]


def lone_answer(served: Server, messages: list[dict[str, str]]) -> dict[str, Any]:
    """The answer to a request that no client made."""
    body = {"model": "mmrec", "temperature": 0, "max_tokens": SHORT, "messages": messages}
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def chat(served: Server, found: dict[str, Any]) -> None:
    """The answer is that of a lone request, and so are the tokens that were counted."""
    expected = lone_answer(served, said(QUESTIONS[0]))
    assert found["text"] == expected["choices"][0]["message"]["content"] != ""
    usage = expected["usage"]
    told = [usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]]
    assert found.get("usage", told) == told


def stream(served: Server, found: list[str]) -> None:
    """The pieces are the whole answer."""
    [choice] = lone_answer(served, said(QUESTIONS[0]))["choices"]
    assert "".join(found) == choice["message"]["content"]


def tools(served: Server, found: dict[str, Any]) -> None:
    """The arguments of the one call fit, and an answer followed its result."""
    [place] = found["called"]
    jsonschema.validate(place, PLACE)
    assert found["answer"]


def combined(served: Server, found: dict[str, Any]) -> None:
    """The arguments of the one call fit, and the object that followed its result."""
    [place] = found["called"]
    jsonschema.validate(place, PLACE)
    jsonschema.validate(found["output"], REPORT)


def embeddings(served: Server, found: list[list[float]]) -> None:
    """The vectors are those that a request for floats gets."""
    body = {"model": "mmrec", "input": QUESTIONS, "encoding_format": "float"}
    rows = httpx.post(f"{served.url}/v1/embeddings", json=body).json()["data"]
    for vector, row in zip(found, rows, strict=True):
        assert vector == pytest.approx(row["embedding"], abs=1e-6)


def turns(served: Server, found: list[str]) -> None:
    """Each answer is that to a lone request with the whole conversation."""
    history: list[dict[str, str]] = []
    for question, text in zip(QUESTIONS, found, strict=True):
        history += said(question)
        message = lone_answer(served, history)["choices"][0]["message"]
        assert text == message["content"]
        history.append({"role": "assistant", "content": text})


def fits(schema: dict[str, Any], served: Server, found: dict[str, Any]) -> None:
    """The object fits the schema."""
    jsonschema.validate(found, schema)


def likelihoods(served: Server, found: list[list[tuple[str, str, float, bool]]]) -> None:
    """They are the model's own."""
    model = served.context.registry.find("mmrec").model
    assert len(found) == len(QUESTIONS)
    for context, text, value, greedy in [choice for choices in found for choice in choices]:
        before, whole = (
            model.tokenizer.encode(one, add_special_tokens=False) for one in (context, context + text)
        )
        with torch.inference_mode():
            logits = model.engine.model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        places = range(len(before), len(whole))
        expected = sum(float(logits[place - 1, whole[place]]) for place in places)
        assert value == pytest.approx(expected, rel=1e-4)
        assert greedy == all(int(logits[place - 1].argmax()) == whole[place] for place in places)


KINDS: dict[str, Callable[[Server, Any], None]] = {
    "chat": chat,
    "stream": stream,
    "tools": tools,
    "combined": combined,
    "embeddings": embeddings,
    "turns": turns,
    "likelihoods": likelihoods,
    **{name: functools.partial(fits, schema) for name, schema in SCHEMAS.items()},
}


@pytest.mark.parametrize(
    ("client", "case"), [(name, case) for name, client in CLIENTS.items() for case in client.cases]
)
def test_a_client_gets_what_it_asks_for(
    served: Server, ask: Callable[[str], dict[str, Any]], client: str, case: str
) -> None:
    found = ask(client)[case]
    assert "value" in found, found["error"]
    KINDS[case.partition("_by_")[0]](served, found["value"])
