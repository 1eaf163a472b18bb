"""The state of a request is freed when it is over, without waiting for a collection of cycles."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import httpx
from serving.server import Server
from waiting import LONGEST, until

from mm_rec.inference.engine import Session
from mm_rec.inference.prefix_cache import PrefixCache
from mm_rec.inference.request import RequestState

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "stream": True}),
    ("/v1/chat/completions", {**CHAT, "n": 3}),
    ("/v1/chat/completions", {**CHAT, "tools": [TOOL], "tool_choice": "required", "max_tokens": 40}),
    ("/v1/chat/completions", {**CHAT, "logit_bias": {"99999": 1}}),
    ("/v1/completions", {"prompt": "Once", "echo": True, "logprobs": 1, "max_tokens": 3}),
    ("/v1/completions", {"prompt": ["Once", "there"], "max_tokens": 3, "stream": True}),
    ("/v1/responses", {"input": "Hi", "max_output_tokens": 5, "store": False}),
    ("/v1/responses", {"input": "Hi", "max_output_tokens": 5, "store": False, "stream": True}),
    ("/v1/embeddings", {"input": "Hi"}),
)


def living() -> dict[type, int]:
    found = gc.get_objects()
    return {kind: sum(type(one) is kind for one in found) for kind in (Session, RequestState)}


async def ask_all(url: str, rounds: int) -> None:
    fixed = {"model": "llama"}
    async with httpx.AsyncClient(base_url=url, timeout=LONGEST) as client:
        for _ in range(rounds):
            for path, body in KINDS:
                await client.post(path, json={**fixed, **body})
                async with client.stream("POST", path, json={**fixed, **body, "max_tokens": 200}) as answer:
                    await anext(answer.aiter_bytes(), b"")  # and gone


def test_no_state_outlives_its_request(server: Server) -> None:
    model = server.context.registry.find("llama").model
    asyncio.run(ask_all(server.url, 1))
    gc.collect()
    gc.disable()
    try:
        model.prefix_cache = PrefixCache(0)  # keeps nothing
        before = living()
        asyncio.run(ask_all(server.url, 4))
        # The last answer of all may be held by the connection that it went over.
        until(lambda: all(count - before[kind] <= 1 for kind, count in living().items()))
    finally:
        gc.enable()
