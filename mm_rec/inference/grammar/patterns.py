"""Regular expressions as automata over UTF-8, written plainly or as strings of JSON.

A pattern is read by Python's own parser. What it may not say in an automaton (look-around, references to groups) is
left out: whoever compiles it for the text itself refuses that.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from mm_rec.errors import ConfigError
from mm_rec.inference.grammar.automaton import PushdownAutomaton
from mm_rec.inference.grammar.transitions import Fragment

Ranges = Sequence[tuple[int, int]]  # of code points, sorted, apart from each other
_ByteTree = tuple[tuple[int, int, Any], ...]  # first and last byte, and the tree of the bytes after them

_ANY = ((0, 0xD7FF), (0xE000, 0x10FFFF))  # without the halves of surrogate pairs
_LINE_END = ((10, 10),)
_DIGITS = ((48, 57),)
_WORD = ((48, 57), (65, 90), (95, 95), (97, 122))
# Unicode's White_Space.
_SPACE = (
    (9, 13), (32, 32), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
    (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000),
)  # fmt: skip
_CATEGORIES = {
    op.CATEGORY_DIGIT: _DIGITS,
    op.CATEGORY_WORD: _WORD,
    op.CATEGORY_SPACE: _SPACE,
}
_NEGATED = {
    op.CATEGORY_NOT_DIGIT: _DIGITS,
    op.CATEGORY_NOT_WORD: _WORD,
    op.CATEGORY_NOT_SPACE: _SPACE,
}
# Written otherwise within strings of JSON.
_FIRST_PRINTABLE = 0x20
_DELETE = 0x7F
_ESCAPED = (*range(_FIRST_PRINTABLE), ord('"'), ord("\\"), _DELETE)
_SLASH = ord("/")  # may be
_MAX_COPIES = 3  # of what is repeated; more are counted
_UTF8_LENGTHS = ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, 0x10FFFF))
_NO_CHARACTER = r"\ud800"  # in a class: half of a surrogate pair is none
_LONG_CATEGORIES = {
    "Letter": "L", "Uppercase_Letter": "Lu", "Lowercase_Letter": "Ll", "Mark": "M", "Number": "N",
    "Decimal_Number": "Nd", "Punctuation": "P", "Symbol": "S", "Separator": "Z", "Other": "C",
}  # fmt: skip
# Properties of Unicode, named groups, other escapes, and where classes begin (also with a bracket in it) and end.
_NOT_PYTHON = re.compile(r"\\[pP](?:\{[^}]*\}|\w)|\(\?<(?![=!])|\\.|\[\^?\]?|\]", re.DOTALL)


class PatternCompiler:
    """Compiles patterns into one automaton."""

    def __init__(
        self, automaton: PushdownAutomaton, *, json_string: bool = False, inline: bool = False
    ) -> None:
        """`json_string`: characters are written as within a string of JSON; `inline`: without calls."""
        self._automaton, self._json_string, self._inline = automaton, json_string, inline
        self._classes: dict[int, tuple[Any, Ranges | None]] = {}  # by the identity of what was read

    def compile(self, pattern: str, *, search: bool = False) -> Fragment:
        """The texts that a pattern matches; with `search`, somewhere, if it is not anchored.

        Raises ConfigError for what is no pattern.
        """
        try:
            parsed = parser.parse(_as_python(pattern))
        except (re.error, RecursionError, OverflowError) as error:
            raise ConfigError(f"the pattern {pattern[:100]!r} cannot be read: {error}") from error
        branches = [list(parsed)]
        if len(parsed) == 1 and parsed[0][0] is op.BRANCH:
            branches = [list(branch) for branch in parsed[0][1][1]]
        flags = parsed.state.flags
        return self._automaton.alternatives([self._branch(branch, flags, search) for branch in branches])

    def characters(self, least: int) -> Fragment:
        """At least so many characters, whatever they are."""
        return self.repeat(lambda: self._one_of(_ANY), least, math.inf)

    def repeat(self, make: Callable[[], Fragment], least: int, most: float) -> Fragment:
        """So many of a fragment, at least and at most.

        Where there may be many more than at least, that there is a most is left to who reads the text: it never makes
        an ending longer.
        """
        if least <= _MAX_COPIES or self._inline:
            parts = [make() for _ in range(least)]
        else:
            parts = [self._automaton.call(make(), least)]
        if most - least > _MAX_COPIES:
            parts.append(self._automaton.loop(make()))
        else:
            parts += [self._automaton.optional(make()) for _ in range(int(most) - least)]
        return self._automaton.sequence(parts)

    def _branch(self, items: list[Any], flags: int, search: bool) -> Fragment:
        starts = bool(items) and items[0] == (op.AT, op.AT_BEGINNING)
        ends = bool(items) and items[-1] == (op.AT, op.AT_END)
        parts = [self._items(items, flags)]
        if search and not starts:
            parts.insert(0, self.characters(0))
        if search and not ends:
            parts.append(self.characters(0))
        return self._automaton.sequence(parts)

    def _items(self, items: Iterable[Any], flags: int) -> Fragment:
        parts: list[Fragment] = []
        for is_plain, group in itertools.groupby(items, lambda item: self._is_plain(item[0], item[1], flags)):
            if is_plain:  # one way through a word
                parts.append(self._automaton.literal("".join(chr(code) for _, code in group).encode()))
            else:
                parts += [self._item(kind, value, flags) for kind, value in group]
        return self._automaton.sequence(parts)

    def _is_plain(self, kind: Any, value: Any, flags: int) -> bool:
        """Whether an item is one character that is written in one way."""
        if kind is not op.LITERAL or flags & re.IGNORECASE or 0xD800 <= value <= 0xDFFF:
            return False
        return not self._json_string or (value not in _ESCAPED and value != _SLASH)

    def _item(self, kind: Any, value: Any, flags: int) -> Fragment:
        make = self._automaton
        if kind is op.BRANCH:
            return make.alternatives([self._items(branch, flags) for branch in value[1]])
        if kind is op.SUBPATTERN:
            _, added, removed, items = value
            return self._items(items, (flags | added) & ~removed)
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            least, most, items = value
            return self.repeat(lambda: self._items(items, flags), least, most)
        if kind is op.ATOMIC_GROUP:
            return self._items(value, flags)
        ranges = self._ranges_of(kind, value, flags)
        return make.literal(b"") if ranges is None else self._one_of(ranges)

    def _ranges_of(self, kind: Any, value: Any, flags: int) -> Ranges | None:
        """The characters of an item, found once: items are made as often as they are repeated."""
        if kind is not op.IN:
            return _ranges(kind, value, flags)
        if id(value) not in self._classes:
            self._classes[id(value)] = value, _ranges(kind, value, flags)
        return self._classes[id(value)][1]

    def _one_of(self, ranges: Ranges) -> Fragment:
        """One character of these."""
        whole = self._automaton.fragment()
        if self._json_string:
            ranges, escaped = _split(tuple(ranges))
            self._add_escapes(whole, escaped)
        _Utf8(self._automaton, whole).add(ranges)
        return whole

    def _add_escapes(self, whole: Fragment, codes: Sequence[int]) -> None:
        """Characters as JSON escapes them, with a letter of their own or by number."""
        if not codes:
            return
        make = self._automaton
        backslash = make.state()
        make.edge(whole.start, ord("\\"), ord("\\"), backslash)
        numbers: dict[str, list[str]] = {}  # the digits of control characters: the first two that differ
        for code in codes:
            text = json.dumps(chr(code))[1:-1].removeprefix("\\")
            if len(text) == 1 and code != _DELETE:
                make.edge(backslash, ord(text), ord(text), whole.end)
            if code < _FIRST_PRINTABLE or code == _DELETE:
                numbers.setdefault(f"{code:02x}"[0], []).append(f"{code:02x}"[1])
        after_zeros = make.extend(backslash, b"u00") if numbers else backslash
        for high, lows in numbers.items():
            place = make.extend(after_zeros, high.encode())
            for low in {*lows, *map(str.upper, lows)}:
                make.edge(place, ord(low), ord(low), whole.end)


class _Utf8:
    """Adds code points to a fragment as UTF-8; ways that end alike share their states."""

    def __init__(self, automaton: PushdownAutomaton, whole: Fragment) -> None:
        self._automaton, self._whole = automaton, whole
        self._states: dict[_ByteTree, int] = {(): whole.end}

    def add(self, ranges: Ranges) -> None:
        """Add the characters of these ranges."""
        self._add(self._whole.start, _byte_tree(tuple(ranges)))

    def _add(self, source: int, tree: _ByteTree) -> None:
        for first, last, below in tree:
            if below not in self._states:
                self._states[below] = self._automaton.state()
                self._add(self._states[below], below)
            self._automaton.edge(source, first, last, self._states[below])


@functools.lru_cache(64)
def _byte_tree(ranges: tuple[tuple[int, int], ...]) -> _ByteTree:
    """The bytes of the characters of some ranges: those that come first, each with what follows it."""
    tree: dict[tuple[int, int], Any] = {}
    for first, last in ranges:
        for low, high in _UTF8_LENGTHS:
            if max(first, low) <= min(last, high):
                for way in _byte_ranges(chr(max(first, low)).encode(), chr(min(last, high)).encode()):
                    node = tree
                    for step in way:
                        node = node.setdefault(step, {})
    return _frozen(tree)


def _frozen(tree: dict[tuple[int, int], Any]) -> _ByteTree:
    return tuple((*step, _frozen(below)) for step, below in tree.items())


def shortest_match(pattern: str) -> int:
    """The fewest characters that a pattern matches, 0 where it is not known."""
    try:
        return int(parser.parse(_as_python(pattern)).getwidth()[0])
    except (re.error, RecursionError, OverflowError):
        return 0


def _as_python(pattern: str) -> str:
    """A pattern as Python reads it; it may match more than the pattern where that asks for properties of Unicode."""
    opening = ""  # of the class that we are within

    def replaced(found: re.Match[str]) -> str:
        nonlocal opening
        sign = found[0]
        if sign[0] == "[" and opening:
            opening = "" if sign[-1] == "]" else opening
            return "\\" + sign
        if sign[0] in "[]":
            opening = sign if sign[0] == "[" else ""
        if sign.startswith((r"\p", r"\P")):
            members = _property_members(sign, "^" in opening)
            return members if opening else f"[{members}]"
        return "(?P<" if sign == "(?<" else sign

    return _NOT_PYTHON.sub(replaced, pattern)


@functools.lru_cache(256)
def _property_members(sign: str, is_negated: bool) -> str:
    r"""The characters of \p{…} or \P{…} in a class, which never holds less for it than it should: of the characters
    beyond ASCII it is given all, or none where the class is negated.
    """
    name = sign[2:].strip("{}").split("=")[-1]
    category = _LONG_CATEGORIES.get(name, name)
    known = len(category) <= 2 and category[:1] in "LMNPSZC"
    members = "" if is_negated else r"\x80-\U0010ffff"
    for code in range(0x80):
        is_member = unicodedata.category(chr(code)).startswith(category) == (sign[1] == "p")
        if is_member if known else not is_negated:
            members += f"\\x{code:02x}"
    return members or _NO_CHARACTER


def _byte_ranges(first: bytes, last: bytes) -> Iterable[list[tuple[int, int]]]:
    """The bytes of all characters from one to another of the same length, as ranges for each place."""
    if len(first) == 1:
        yield [(first[0], last[0])]
        return
    low, high = b"\x80" * (len(first) - 1), b"\xbf" * (len(first) - 1)
    if first[0] == last[0]:
        for rest in _byte_ranges(first[1:], last[1:]):
            yield [(first[0], first[0]), *rest]
        return
    begin, end = first[0], last[0]
    if first[1:] != low:
        for rest in _byte_ranges(first[1:], high):
            yield [(begin, begin), *rest]
        begin += 1
    if last[1:] != high:
        end -= 1
    if begin <= end:
        yield [(begin, end)] + [(0x80, 0xBF)] * (len(first) - 1)
    if last[1:] != high:
        for rest in _byte_ranges(low, last[1:]):
            yield [(last[0], last[0]), *rest]


def _ranges(kind: Any, value: Any, flags: int) -> Ranges | None:
    """The characters of an item of a pattern that matches one; None for one that matches none."""
    if kind is op.LITERAL:
        return _both_cases([(value, value)], flags)
    if kind is op.NOT_LITERAL:
        return _minus(_ANY, _both_cases([(value, value)], flags))
    if kind is op.ANY:
        return _ANY if flags & re.DOTALL else _minus(_ANY, _LINE_END)
    if kind is not op.IN:
        return None
    negated, found = False, list[tuple[int, int]]()
    for what, given in value:
        if what is op.NEGATE:
            negated = True
        elif what is op.LITERAL:
            found.append((given, given))
        elif what is op.RANGE:
            found.append(given)
        elif what is op.CATEGORY:
            found += _CATEGORIES.get(given) or _minus(_ANY, _NEGATED[given])
    found = _both_cases(found, flags)
    return _minus(_ANY, found) if negated else _minus(found, [(0xD800, 0xDFFF)])


def _both_cases(ranges: list[tuple[int, int]], flags: int) -> list[tuple[int, int]]:
    """Ranges in order; where a pattern ignores case, with the other case of ASCII's letters and of single ones."""
    found = list(ranges)
    if flags & re.IGNORECASE:
        for first, last in ranges:
            for code in range(first, min(last, first + 1000) + 1):
                found += [
                    (ord(other), ord(other))
                    for other in (chr(code).lower(), chr(code).upper())
                    if len(other) == 1
                ]
    merged: list[tuple[int, int]] = []
    for first, last in sorted(found):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def _minus(ranges: Ranges, without: Ranges) -> list[tuple[int, int]]:
    left: list[tuple[int, int]] = []
    for first, last in ranges:
        begin = first
        for low, high in sorted(without):
            if low > last or high < begin:
                continue
            if low > begin:
                left.append((begin, low - 1))
            begin = high + 1
        if begin <= last:
            left.append((begin, last))
    return left


@functools.lru_cache(64)
def _split(ranges: tuple[tuple[int, int], ...]) -> tuple[Ranges, list[int]]:
    """The characters that a string of JSON holds as they are, and those that it escapes, or may."""
    escaped = [code for code in (*_ESCAPED, _SLASH) if _contains(ranges, code)]
    return _minus(ranges, [(code, code) for code in _ESCAPED]), escaped


def _contains(ranges: Ranges, code: int) -> bool:
    return any(first <= code <= last for first, last in ranges)
