"""An answer's text given to a parser in random pieces, as it may come from a model."""

from __future__ import annotations

import random

from mm_rec.serving.protocol.tool_calls import OutputParser, ParsedDelta


def parse_in_pieces(parser: OutputParser, text: str, seed: int) -> list[ParsedDelta]:
    """All parts that a parser gives of a text that comes in pieces of one to seven letters."""
    chance, parts, place = random.Random(seed), list[ParsedDelta](), 0
    while place < len(text):
        step = chance.randint(1, 7)
        parts += parser.push(text[place : place + step])
        place += step
    return [*parts, *parser.finish()]
