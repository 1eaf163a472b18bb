"""Short chats: how long one takes beside the engine's own time, and their rate beside busy processes."""

from __future__ import annotations

import http.client
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import beside
from serving import Server

WORDS = ("ev", "su", "göl", "kuş", "the", "a", "in", "sees", "ağaç", "bir", "her", "old")
WARM_UP = 10  # chats
WINDOW = 3.0  # seconds in which a rate is measured
_CALL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


class Chat:
    """Chats with one model over one kept connection; the plainest client, which costs the server's cores least."""

    def __init__(self, server: Server, model: str) -> None:
        self._connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=600)
        self._model = model

    def ask(self, text: str, new: int, **more: Any) -> dict[str, Any]:
        """The answer, of `new` tokens where nothing ends it before."""
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": new,
            **more,
        }
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = self._connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        if response.status != 200:
            raise SystemExit(f"{response.status}: {json.dumps(answer)[:500]}")
        return answer


def question(source: random.Random) -> str:
    """A text never sent before, of some 20 tokens."""
    return " ".join(source.choice(WORDS) for _ in range(10))


def engine_alone(folder: Path, precision: str) -> Callable[[str], tuple[float, float, int]]:
    """What reads a chat and writes one token without a server.

    Gives the seconds in the parts in which a server reads it, with a copy after each that the prefix cache would keep,
    the seconds in one piece, and how many tokens were read.
    """
    from mm_rec.data.conversations.conversation import ChatMessage
    from mm_rec.data.conversations.prompt_parts import prompt_parts
    from mm_rec.inference.generate import encode_rendered
    from mm_rec.inference.manager import open_model
    from mm_rec.inference.sampler import SamplingParams

    loaded = open_model(folder, device="cpu", precision=precision)
    sampling = SamplingParams(temperature=0, max_new_tokens=1)

    def seconds(parts: list[list[int]]) -> float:
        start = time.perf_counter()
        session, kept = loaded.engine.session(), []
        for ids in parts:
            kept.append(session.fork())
            session.prefill(ids)
        assert len(list(session.generate(sampling))) == 1
        return time.perf_counter() - start

    def answer(text: str) -> tuple[float, float, int]:
        texts = prompt_parts(loaded.tokenizer, [ChatMessage(role="user", content=text)])
        parts = [encode_rendered(loaded.tokenizer, part) for part in texts]
        whole = [token for ids in parts for token in ids]
        return seconds(parts), seconds([whole]), len(whole)

    return answer


def latency(server: Server, model: str, folder: Path, precision: str, requests: int) -> dict[str, Any]:
    """A one-token chat on a kept connection relative to the engine's own time for the same work, in turn."""
    chat, alone, source = Chat(server, model), engine_alone(folder, precision), random.Random(0)
    rows, read = [], 0
    for _ in range(WARM_UP + requests):
        start = time.perf_counter()
        chat.ask(question(source), 1, temperature=0)
        served = time.perf_counter() - start
        in_parts, whole, read = alone(question(source))
        rows.append((served, in_parts, whole))
    served, in_parts, whole = (sorted(column) for column in zip(*rows[WARM_UP:], strict=True))
    p50 = {
        name: 1000 * statistics.median(column)
        for name, column in {"chat": served, "engine": in_parts, "engine_in_one_piece": whole}.items()
    }
    return {
        "ratio": round(p50["chat"] / p50["engine"], 3), "goal": 1.3,
        **{f"{name}_p50_ms": round(value, 2) for name, value in p50.items()},
        "chat_p99_ms": round(1000 * served[int(0.99 * len(served))], 2), "prompt": read, "requests": requests,
    }  # fmt: skip


def rates(chat: Chat, source: random.Random, seconds: float) -> dict[str, float]:
    """Calls of a function by a grammar, one-token chats and tokens written, each a second, one kind after the other."""

    def call() -> int:
        chat.ask(question(source), 80, tools=[_CALL], tool_choice="required", seed=source.randrange(1000))
        return 1

    def short() -> int:
        chat.ask(question(source), 1, temperature=0)
        return 1

    def write() -> int:
        return int(chat.ask(question(source), 128, temperature=0)["usage"]["completion_tokens"])

    found = {}
    for name, ask in {"calls": call, "chats": short, "tokens": write}.items():
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            done += ask()
        found[name] = done / (time.perf_counter() - start)
    return found


def beside_busy(server: Server, model: str, neighbours: int, rounds: int) -> dict[str, Any]:
    """Rates alone and beside processes that never rest, in turn: the share that is left of each."""
    chat, source, pairs = Chat(server, model), random.Random(0), []
    rates(chat, source, WINDOW)  # warms up
    for _ in range(rounds):
        alone = rates(chat, source, WINDOW)
        with beside.busy(neighbours):
            pairs.append((alone, rates(chat, source, WINDOW)))
    values: dict[str, Any] = {"neighbours": neighbours, "rounds": rounds}
    for name in pairs[0][0]:
        shares = [busy[name] / alone[name] for alone, busy in pairs]
        values[f"{name}_share"] = round(statistics.median(shares), 3)
        values[f"{name}_share_range"] = [round(min(shares), 3), round(max(shares), 3)]
        values[f"{name}_alone"] = round(statistics.median(alone[name] for alone, _ in pairs), 1)
        values[f"{name}_beside"] = round(statistics.median(busy[name] for _, busy in pairs), 1)
    return values
