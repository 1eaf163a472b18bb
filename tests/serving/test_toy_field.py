"""A field of chat completions is added by a module (`toy_field.py`) and a line, from outside the package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import toy_field
from serving.server import Server, small_model
from transformers import PreTrainedTokenizerBase

from mm_rec.errors import ConfigError
from mm_rec.serving.protocol import fields
from mm_rec.serving.protocol.chat_field import ChatField
from mm_rec.serving.protocol.fields import register
from mm_rec.serving.protocol.schemas import ChatRequest

CHAT = "/v1/chat/completions"
HI: dict[str, Any] = {"model": "llama", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 40}
WORDS = ["kırmızı", "mavi"]


@pytest.fixture
def no_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(fields, "_FIELDS", {})


@pytest.fixture
def with_toy(
    no_fields: None, chat_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    register(toy_field.FIELD)
    running = Server([small_model("llama", chat_tokenizer)], tmp_path_factory.mktemp("toy"))
    yield running
    running.stop()


def test_a_toy_field_is_read_checked_described_and_does_what_it_says(with_toy: Server) -> None:
    with httpx.Client(base_url=with_toy.url, timeout=60) as http:
        for seed in range(4):
            told = http.post(CHAT, json={**HI, "one_of": WORDS, "seed": seed, "temperature": 2}).json()
            assert json.loads(told["choices"][0]["message"]["content"]) in WORDS
        plain = http.post(CHAT, json={**HI, "temperature": 0}).json()["choices"]
        assert http.post(CHAT, json={**HI, "temperature": 0, "one_of": None}).json()["choices"] == plain
        for wrong in ([], 5):
            refused = http.post(CHAT, json={**HI, "one_of": wrong})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "one_of")
        schema = http.get("/openapi.json").json()["components"]["schemas"]["ChatRequest"]
    assert schema["properties"].pop("one_of")["description"] == toy_field.FIELD.description
    own = ChatRequest.model_json_schema()
    assert (set(schema["properties"]), schema["description"]) == (set(own["properties"]), own["description"])


def test_a_field_that_nobody_registered_is_refused(server: Server) -> None:
    refused = httpx.post(server.url + CHAT, json={**HI, "one_of": WORDS})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unknown_parameter")


def test_two_fields_cannot_have_one_name(no_fields: None) -> None:
    assert register(toy_field.FIELD) is register(toy_field.FIELD)
    for name in ("temperature", "one_of"):
        with pytest.raises(ConfigError, match=f"a field '{name}' already. Give this one another name"):
            register(ChatField(name, int, "Twice.", lambda body, value: body))
