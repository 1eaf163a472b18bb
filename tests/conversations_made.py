"""Conversations made for tests: as many as wanted, the same for a seed, with tools, calls and weights."""

from __future__ import annotations

import random

from mm_rec.data.conversations.conversation import ChatMessage, Conversation, ToolCall

WEATHER = {
    "type": "function",
    "function": {
        "name": "hava_durumu",
        "description": "Bir şehrin havası",
        "parameters": {
            "type": "object",
            "properties": {"şehir": {"type": "string"}, "gün": {"type": "integer"}},
            "required": ["şehir"],
        },
    },
}
_WORDS = [
    *["Ayşe", "ırmağın", "kıyısında", "İzmir'de", "She", "sings", "old", "songs", "sees", "the", "stars", "🌟", "ok"],
    "and\nmore", '"quoted"', "{json: 1}",
]  # fmt: skip


def made(count: int, seed: int = 0) -> list[Conversation]:
    """`count` conversations."""
    chance = random.Random(seed)
    return [_one(chance, number) for number in range(count)]


def _text(chance: random.Random) -> str:
    return " ".join(chance.choices(_WORDS, k=chance.randint(1, 6)))


def _one(chance: random.Random, number: int) -> Conversation:
    messages: list[ChatMessage] = []
    if chance.random() < 0.4:
        messages.append(ChatMessage("system", _text(chance)))
    if chance.random() < 0.2:
        messages.append(ChatMessage("developer", _text(chance)))
    tools = chance.random() < 0.5
    turns = chance.randint(1, 4)
    for turn in range(turns):
        messages.append(ChatMessage("user", _text(chance)))
        if tools and chance.random() < 0.6:
            calls = tuple(
                ToolCall(
                    "hava_durumu", {"şehir": _text(chance), "gün": chance.randint(0, 6)}, f"c{turn}_{call}"
                )
                for call in range(chance.randint(1, 2))
            )
            messages.append(ChatMessage("assistant", _text(chance) if chance.random() < 0.5 else "", calls))
            messages += [ChatMessage("tool", _text(chance), tool_call_id=call.id) for call in calls]
        weight = 0 if chance.random() < 0.3 and turn < turns - 1 else None
        messages.append(ChatMessage("assistant", _text(chance), weight=weight))
    return Conversation(tuple(messages), (WEATHER,) if tools else (), {}, f"made:{number}")
