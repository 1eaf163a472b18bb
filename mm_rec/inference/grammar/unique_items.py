"""Arrays whose items must differ (`uniqueItems`), which no grammar can say."""

from __future__ import annotations

import json
from typing import Any

from mm_rec.inference.grammar.automaton import Configurations, PushdownAutomaton


class UniqueItems:
    """The text that was written, and where arrays begin in it whose items must differ: those that are still open, or
    were not looked at since they ended.
    """

    def __init__(self, automaton: PushdownAutomaton) -> None:
        self._automaton = automaton
        self._text, self._starts = bytearray(), list[int]()

    def write(self, place: Configurations, text: bytes) -> None:
        """Go on with a text from a place of the automaton."""
        self._starts += self._begun(place, text)
        self._text += text

    def differ(self, place: Configurations, ending: bytes) -> bool:
        """Return whether the items of these arrays differ in the whole text, with its ending from a place."""
        whole, open_starts = bytes(self._text + ending), []
        for start in [*self._starts, *self._begun(place, ending)]:
            text = whole[start:].decode(errors="replace")
            items, length = _array_at_start(text)
            if items is None or len(set(items)) != len(items):
                return False
            if start + len(text[:length].encode()) > len(self._text):
                open_starts.append(start)
        self._starts = [start for start in open_starts if start < len(self._text)]
        return True

    def _begun(self, place: Configurations, text: bytes) -> list[int]:
        starts = []
        for offset, byte in enumerate(text, len(self._text)):
            if byte == ord("[") and self._automaton.begins_unique_array(place, byte):
                starts.append(offset)
            place = self._automaton.advance(place, byte)
        return starts


def _array_at_start(text: str) -> tuple[list[str] | None, int]:
    """The items of the array that a text begins with, and its length in characters; None for too deep a one."""
    try:
        items, length = json.JSONDecoder().raw_decode(text)
        return list(map(canonical_json, items)), length
    except RecursionError:
        return None, 0


def canonical_json(value: Any) -> str:
    """A value as a text that is the same for all values that JSON schema takes for equal."""
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    """A value in which equal numbers are written alike, as JSON schema compares them."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value
