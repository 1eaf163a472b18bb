"""Arrays whose items must differ (`uniqueItems`), which no grammar can say."""

from __future__ import annotations

import json
from typing import Any

from mm_rec.inference.grammar.automaton import Configurations, PushdownAutomaton


class UniqueItems:
    """The text that was written, and where arrays begin in it whose items must differ."""

    def __init__(self, automaton: PushdownAutomaton) -> None:
        self._automaton = automaton
        self._text, self._starts = bytearray(), list[int]()

    def write(self, place: Configurations, text: bytes) -> None:
        """Go on with a text from a place of the automaton."""
        self._starts += self._begun(place, text)
        self._text += text

    def differ(self, place: Configurations, ending: bytes) -> bool:
        """Return whether the items of these arrays differ in the whole text, with its ending from a place."""
        starts = [*self._starts, *self._begun(place, ending)]
        whole = (self._text + ending).decode(errors="replace") if starts else ""
        # Counted in bytes, where characters are asked for.
        return all(
            _differ(whole, len((self._text + ending)[:start].decode(errors="replace"))) for start in starts
        )

    def _begun(self, place: Configurations, text: bytes) -> list[int]:
        starts = []
        for offset, byte in enumerate(text, len(self._text)):
            if byte == ord("[") and self._automaton.begins_unique_array(place, byte):
                starts.append(offset)
            place = self._automaton.advance(place, byte)
        return starts


def _differ(text: str, start: int) -> bool:
    items, _ = json.JSONDecoder().raw_decode(text, start)
    written = [json.dumps(_plain(item), sort_keys=True) for item in items]
    return len(set(written)) == len(written)


def _plain(value: Any) -> Any:
    """A value in which equal numbers are written alike, as JSON schema compares them."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value
