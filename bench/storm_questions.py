"""What the clients of storm.py ask: questions of many kinds, and what is none."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WORDS = (
    "göl",
    "kuş",
    "ağaç",
    "bir",
    "the",
    "old",
    "sees",
    "river",
    "mavi",
    "yıldız",
    "what",
    "song",
    "ev",
    "why",
)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Ankara", "İzmir", "Muğla"]}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "bird",
        "schema": {
            "type": "object",
            "properties": {"wings": {"type": "boolean"}, "colour": {"enum": ["red", "mavi", "green"]}},
            "required": ["wings", "colour"],
            "additionalProperties": False,
        },
    },
}


@dataclass
class Question:
    """A request, and the answer to it when it was the only one: choices, or vectors."""

    path: str
    body: dict[str, Any]
    expected: Any = None


def sentence(source: random.Random, most: int) -> str:
    return " ".join(source.choice(WORDS) for _ in range(source.randint(1, most)))


def questions(models: Sequence[str], precision: str) -> list[Question]:
    """What clients ask, for each model; in bfloat16 always with the two likeliest tokens."""
    source = random.Random(7)
    found = []
    chat_logprobs = {} if precision == "float32" else {"logprobs": True, "top_logprobs": 2}
    for model in models:
        for number in range(40):
            messages = [{"role": "user", "content": sentence(source, 30)}]
            if number % 2:
                messages.insert(0, {"role": "system", "content": "You are a kind teacher of English."})
            if number % 5 == 0:
                messages += [{"role": "assistant", "content": sentence(source, 8)}, messages[-1]]
            body = {
                "model": model,
                "messages": messages,
                "temperature": 0,
                "max_tokens": source.randint(4, 24),
            }
            more: dict[str, Any] = {}
            if number in (7, 17):
                more = {"n": 2}
            elif number in (8, 18, 28):
                more = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 60}
            elif number in (9, 19):
                more = {"response_format": SCHEMA, "max_tokens": 60}
            elif number in (10, 20):
                more = {"stop": ["a", "e"]}
            found.append(Question("/v1/chat/completions", {**body, **chat_logprobs, **more}))
        for _ in range(6):
            body = {"model": model, "prompt": sentence(source, 20), "echo": True, "logprobs": 2}
            found.append(Question("/v1/completions", {**body, "temperature": 0, "max_tokens": 10}))
            found.append(Question("/v1/embeddings", {"model": model, "input": sentence(source, 40)}))
    return found


def nonsense(model: str) -> list[tuple[str, bytes, int]]:
    """Bodies that cannot be answered, with the status that each should get."""
    chat = "/v1/chat/completions"
    good: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "kim?"}],
        "max_tokens": 4,
    }
    image = [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]
    unmakeable = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "(?=a)"}},
    }
    changes: list[tuple[str, dict[str, Any], int]] = [
        (chat, {"messages": "kim?"}, 400),
        (chat, {"messages": []}, 400),
        (chat, {"messages": [{"role": "user", "content": image}]}, 400),
        (chat, {"messages": [{"role": "nobody", "content": "a"}]}, 400),
        (chat, {"messages": [{"role": "user", "content": "kuş " * 3_000}]}, 400),
        (chat, {"max_tokens": 1_000_000}, 400),
        (chat, {"max_tokens": "many"}, 400),
        (chat, {"temperature": 7}, 400),
        (chat, {"n": 1_000}, 400),
        (chat, {"best_of_all": 1}, 400),
        (chat, {"model": "gpt-9"}, 404),
        (chat, {"model": "../../etc/passwd"}, 404),
        (chat, {"logit_bias": {"99999999": 1}}, 400),
        (chat, {"session": "sess_none"}, 404),
        (chat, {"tool_choice": "required"}, 400),
        (chat, {"response_format": unmakeable}, 400),
        ("/v1/completions", {"prompt": [10**9], "messages": None}, 400),
        ("/v1/completions", {"prompt": [], "messages": None}, 400),
        ("/v1/responses", {"input": 3, "messages": None, "max_tokens": None}, 400),
        ("/v1/embeddings", {"input": "", "messages": None, "max_tokens": None}, 400),
    ]
    bodies = []
    for path, change, status in changes:
        body = {name: value for name, value in {**good, **change}.items() if value is not None}
        bodies.append((path, json.dumps(body).encode(), status))
    broken = [b"", b"{", b"[]", b"null", b'{"model": "\\ud800"', b"\xff\xfe", b"[" * 50_000]
    return bodies + [(chat, body, 400) for body in broken] + [("/v1/nothing", b"{}", 404)]
