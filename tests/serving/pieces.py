"""An answer's text given to a reader in random pieces, as it may come from a model."""

from __future__ import annotations

import random

from mm_rec.serving.tool_calls import Part, Reader


def in_pieces(reader: Reader, text: str, seed: int) -> list[Part]:
    """All parts that a reader gives of a text that comes in pieces of one to seven letters."""
    chance, parts, place = random.Random(seed), list[Part](), 0
    while place < len(text):
        step = chance.randint(1, 7)
        parts += reader.push(text[place : place + step])
        place += step
    return [*parts, *reader.finish()]
