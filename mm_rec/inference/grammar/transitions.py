"""States of an automaton and the edges between them, and how fragments of it are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from mm_rec.errors import ConfigError

MAX_STATES = 60_000  # of one grammar, less than 1 KB each
MAX_EDGES = 4 * MAX_STATES
SPECIAL = 256  # the symbol of the token with id 0; bytes come before it


class GrammarTooLargeError(ConfigError):
    """A grammar takes more than is given to one."""


class Fragment(NamedTuple):
    """A part of the automaton between two states; where it is called, a rule."""

    start: int
    end: int


class Call(NamedTuple):
    """A rule so many times, and the state after it."""

    rule: Fragment
    times: int
    target: int


class TransitionNetwork:
    """The states, the edges between them, and the calls of rules.

    `check` is called now and then while it is built, and may raise to end that. Raises GrammarTooLargeError for more
    than `MAX_STATES`.
    """

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        self.check = check
        self._edges: list[list[tuple[int, int, int]]] = []  # by state: first and last symbol, target
        self._epsilons: dict[int, list[int]] = {}
        self._calls: dict[int, Call] = {}
        self._num_edges = 0
        self._ends: set[int] = set()  # of rules
        self._unique: set[int] = set()  # after the opening of arrays whose items must differ

    @property
    def num_states(self) -> int:
        """How many states there are."""
        return len(self._edges)

    def state(self) -> int:
        """Make a state."""
        number = len(self._edges)
        if number >= MAX_STATES:
            raise GrammarTooLargeError(
                f"it takes more than {MAX_STATES:,} states. Make its patterns and enums shorter"
            )
        if number % 1024 == 0:
            self.check()
        self._edges.append([])
        return number

    def fragment(self) -> Fragment:
        """Make two states with nothing between them yet."""
        return Fragment(self.state(), self.state())

    def edge(self, source: int, first: int, last: int, target: int) -> None:
        """Let the symbols from `first` to `last` lead from a state to another."""
        self._num_edges += 1
        if self._num_edges > MAX_EDGES:
            raise GrammarTooLargeError(
                f"it takes more than {MAX_EDGES:,} transitions. Make its classes smaller"
            )
        if self._num_edges % 1024 == 0:
            self.check()
        self._edges[source].append((first, last, target))

    def epsilon(self, source: int, target: int) -> None:
        """Let nothing lead from a state to another."""
        self._epsilons.setdefault(source, []).append(target)

    def call(self, rule: Fragment, times: int = 1) -> Fragment:
        """Make a fragment that is a rule so many times."""
        whole = self.fragment()
        self._ends.add(rule.end)
        self._calls[whole.start] = Call(rule, times, whole.end)
        return whole

    def literal(self, text: bytes) -> Fragment:
        """Make a fragment that is one text."""
        start = self.state()
        return Fragment(start, self.extend(start, text))

    def extend(self, source: int, text: bytes) -> int:
        """Let a text lead on from a state; returns where it ends."""
        for byte in text:
            target = self.state()
            self.edge(source, byte, byte, target)
            source = target
        return source

    def extend_to(self, source: int, text: bytes, target: int) -> None:
        """Let a text lead from a state to another."""
        self.edge(self.extend(source, text[:-1]), text[-1], text[-1], target)

    def literals(self, texts: Iterable[bytes]) -> Fragment:
        """Make a fragment that is one of some texts; what they begin with alike is one way."""
        whole = self.fragment()
        after: dict[tuple[int, int], int] = {}
        for text in texts:
            state = whole.start
            for byte in text:
                following = after.get((state, byte))
                if following is None:
                    following = after[state, byte] = self.extend(state, bytes([byte]))
                state = following
            self.epsilon(state, whole.end)
        return whole

    def sequence(self, parts: Iterable[Fragment]) -> Fragment:
        """Join fragments, one after the other."""
        start, end = -1, -1
        for part in parts:
            if start < 0:
                start = part.start
            else:
                self.epsilon(end, part.start)
            end = part.end
        return Fragment(start, end) if start >= 0 else self.literal(b"")

    def alternatives(self, parts: Iterable[Fragment]) -> Fragment:
        """Join fragments of which one comes."""
        whole = self.fragment()
        for part in parts:
            self.epsilon(whole.start, part.start)
            self.epsilon(part.end, whole.end)
        return whole

    def optional(self, part: Fragment) -> Fragment:
        """A fragment, or nothing."""
        return self.alternatives([part, self.literal(b"")])

    def loop(self, part: Fragment) -> Fragment:
        """Any number of a fragment."""
        whole = self.fragment()
        self.epsilon(whole.start, part.start)
        self.epsilon(part.end, whole.start)
        self.epsilon(whole.start, whole.end)
        return whole

    def mark_unique(self, state: int) -> None:
        """Note that an array begins before this state whose items must differ."""
        self._unique.add(state)

    def intersection(self, left: Fragment, right: Fragment) -> Fragment:
        """What is in both of two fragments without calls (product construction)."""
        pairs: dict[tuple[int, int], int] = {}
        waiting: list[tuple[int, int]] = []

        def at(pair: tuple[int, int]) -> int:
            if pair not in pairs:
                pairs[pair] = self.state()
                waiting.append(pair)
            return pairs[pair]

        start = at((left.start, right.start))
        while waiting:
            one, other = waiting.pop()
            source = pairs[one, other]
            for target in self._epsilons.get(one, ()):
                self.epsilon(source, at((target, other)))
            for target in self._epsilons.get(other, ()):
                self.epsilon(source, at((one, target)))
            for first, last, target in self._edges[one]:
                for other_first, other_last, other_target in self._edges[other]:
                    low, high = max(first, other_first), min(last, other_last)
                    if low <= high:
                        self.edge(source, low, high, at((target, other_target)))
        return Fragment(start, at((left.end, right.end)))
