"""A pushdown automaton over bytes, which knows the shortest way to the end from everywhere.

Rules of a grammar become networks of states; a rule within another is a call, which leaves on a stack where to return
to, and how often the rule comes again before (Woods, "Transition network grammars for natural language analysis",
1970). The distance of every state to the end of its rule is found once (Knuth, "A generalization of Dijkstra's
algorithm", 1977), so that an ending costs no search.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mm_rec.errors import ConfigError
from mm_rec.inference.grammar.transitions import SPECIAL, Call, Fragment, TransitionNetwork

MAX_CONFIGURATIONS = 2_048  # followed at once; those nearest to an end stay
# What is written where there is a choice.
_PREFERRED = b"n0123456789-.:@aeiost/_ +()#=*!?%&$~;,^|<>`{}[]bcdfghjklmpqruvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_RANK = {byte: rank for rank, byte in enumerate(_PREFERRED)}

Piece = bytes | int  # of an ending: bytes to write, or the id of a special token


class Stack:
    """The calls that a text is within, the last of them first. Equal stacks above one object are one object.

    `count`: how often the rule comes again; `distance`: to the end after the rule.
    """

    __slots__ = ("above", "call", "children", "count", "distance")

    def __init__(self, call: Call | None, count: int, above: Stack | None, distance: float) -> None:
        self.call, self.count, self.above, self.distance = call, count, above, distance
        self.children: dict[tuple[Call, int], Stack] = {}


Configuration = tuple[int, Stack]  # where a text can be: a state, and where to go on after its rule
Configurations = Sequence[Configuration]


class _Run(NamedTuple):
    """What the shortest way writes from a state on, backwards: the first `length` bytes of `written`, up to a state
    that begins another run, calls a rule, writes a special token or ends its rule.
    """

    written: bytearray
    length: int
    stop: int


class PushdownAutomaton(TransitionNetwork):
    """A network that, once it is `finish`ed, follows texts and knows the way to the end."""

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        super().__init__(check)
        self._start = -1
        self._distance: list[float] = []
        self._runs: list[_Run | None] = []
        self._stops: dict[int, Call | tuple[int, int]] = {}  # what follows there: a call, or a special token
        self._texts: dict[Fragment, list[Piece]] = {}

    # The way to the end.

    def finish(self, root: Fragment) -> None:
        """Find the way to the end of every state; texts are those of the root rule.

        Raises ConfigError where there is no end.
        """
        self._ends.add(root.end)
        self._start = root.start
        self._find_distances()
        if math.isinf(self._distance[root.start]):
            raise ConfigError("no text of it has an end")

    def _find_distances(self) -> None:
        before, callers = self._predecessors()
        distance = self._distance = [math.inf] * len(self._edges)
        self._runs = [None] * len(self._edges)
        # The distance, the rank of what comes first, the state; its symbol, and what follows.
        heap: list[tuple[float, int, int, int, int | Call]] = [
            (0.0, 0, end, -1, -1) for end in sorted(self._ends)
        ]
        while heap:
            far, _, state, symbol, way = heapq.heappop(heap)
            if self._runs[state] is not None:
                continue
            distance[state], self._runs[state] = far, self._run(state, symbol, way)
            for source, byte in before[state]:
                if self._runs[source] is None:
                    heapq.heappush(heap, (far + (byte >= 0), _rank(byte), source, byte, state))
            for source, call in callers.get(state, ()):
                step = distance[call.target] + call.times * distance[call.rule.start]
                if self._runs[source] is None and not math.isinf(step):
                    heapq.heappush(heap, (step, 0, source, -1, call))

    def _predecessors(self) -> tuple[list[list[tuple[int, int]]], dict[int, list[tuple[int, Call]]]]:
        """By state, what leads to it: a state and a symbol, or -1; and the calls whose distance hangs on it."""
        before: list[list[tuple[int, int]]] = [[] for _ in self._edges]
        for source, edges in enumerate(self._edges):
            for first, last, target in edges:
                before[target].append((source, _preferred(first, last)))
        for source, targets in self._epsilons.items():
            for target in targets:
                before[target].append((source, -1))
        callers: dict[int, list[tuple[int, Call]]] = {}
        for source, call in self._calls.items():
            for state in (call.rule.start, call.target):
                callers.setdefault(state, []).append((source, call))
        return before, callers

    def _run(self, state: int, symbol: int, way: int | Call) -> _Run:
        if way == -1:
            return _Run(bytearray(), 0, state)
        if isinstance(way, Call) or symbol >= SPECIAL:
            self._stops[state] = way if isinstance(way, Call) else (symbol - SPECIAL, way)
            return _Run(bytearray(), 0, state)
        after = self._runs[way]
        assert after is not None
        if symbol == -1:
            return after
        if len(after.written) != after.length:  # another way leads there already, and goes on from it
            after = _Run(bytearray(), 0, way)
        after.written.append(symbol)
        return _Run(after.written, after.length + 1, after.stop)

    def distance(self, configuration: Configuration) -> float:
        """How many symbols the shortest ending has."""
        return self._distance[configuration[0]] + configuration[1].distance

    def ending(self, configuration: Configuration) -> list[Piece]:
        """Write the shortest ending."""
        state, stack = configuration
        pieces = self._rest(state)
        while stack.call is not None:
            pieces += [*self._text(stack.call.rule, stack.count), *self._rest(stack.call.target)]
            assert stack.above is not None
            stack = stack.above
        return _joined(pieces)

    def _rest(self, state: int) -> list[Piece]:
        """The shortest way from a state to the end of its rule."""
        pieces: list[Piece] = []
        while True:
            run = self._runs[state]
            assert run is not None
            if run.length:
                pieces.append(bytes(reversed(run.written[: run.length])))
            state, stop = run.stop, self._stops.get(run.stop)
            if isinstance(stop, Call):
                pieces += self._text(stop.rule, stop.times)
                state = stop.target
            elif stop is not None:
                pieces.append(stop[0])
                state = stop[1]
            elif state in self._ends:
                return pieces
            # Else another run begins here.

    def _text(self, rule: Fragment, times: int) -> list[Piece]:
        """The shortest text of a rule, so many times."""
        if rule not in self._texts:
            self._texts[rule] = _joined(self._rest(rule.start))
        pieces = self._texts[rule]
        if len(pieces) == 1 and isinstance(pieces[0], bytes):
            return [pieces[0] * times]
        return pieces * times

    # Following a text.

    def begin(self) -> Configurations:
        """Where a text is before its first symbol."""
        return self._close([(self._start, Stack(None, 0, None, 0.0))])

    def advance(self, configurations: Configurations, symbol: int) -> Configurations:
        """Where a text can be after one more symbol; empty where it cannot be."""
        found = self._after_edges(configurations, symbol)
        return self._close(found) if found else ()

    def _after_edges(self, configurations: Configurations, symbol: int) -> list[Configuration]:
        return [
            (target, stack)
            for state, stack in configurations
            for first, last, target in self._edges[state]
            if first <= symbol <= last
        ]

    @property
    def has_unique_arrays(self) -> bool:
        """Whether there are arrays whose items must differ."""
        return bool(self._unique)

    def begins_unique_array(self, configurations: Configurations, symbol: int) -> bool:
        """Whether a symbol begins an array whose items must differ, whichever way the text is read."""
        targets = {target for target, _ in self._after_edges(configurations, symbol)}
        return bool(targets) and targets <= self._unique

    def next_symbols(self, configurations: Configurations) -> list[int]:
        """The symbols that may come next, in the order in which endings prefer them."""
        found: set[int] = set()
        for state, _ in configurations:
            for first, last, _ in self._edges[state]:
                found.update(range(first, last + 1))
        return sorted(found, key=lambda symbol: (_rank(symbol), symbol))

    def _close(self, configurations: list[Configuration]) -> Configurations:
        """All that can be reached without a symbol, nearest to an end first; only what an edge leaves, or ends."""
        reached: list[Configuration] = []
        seen = dict.fromkeys(configurations)
        waiting = list(seen)
        while waiting:
            state, stack = one = waiting.pop()
            if math.isinf(self._distance[state]):
                continue
            if self._edges[state] or (state in self._ends and stack.call is None):
                reached.append(one)
            if len(seen) > 4 * MAX_CONFIGURATIONS:
                continue
            for new in self._following(state, stack):
                if new not in seen:
                    seen[new] = None
                    waiting.append(new)
        return reached if len(reached) == 1 else sorted(reached, key=self.distance)[:MAX_CONFIGURATIONS]

    def _following(self, state: int, stack: Stack) -> list[Configuration]:
        """Where a text can be without a symbol."""
        found = [(target, stack) for target in self._epsilons.get(state, ())]
        call = self._calls.get(state)
        if call is not None and not math.isinf(self._distance[call.target]):
            found.append((call.rule.start, self._pushed(stack, call, call.times - 1)))
        if state in self._ends and stack.call is not None and state == stack.call.rule.end:
            assert stack.above is not None
            if stack.count == 0:
                found.append((stack.call.target, stack.above))
            else:
                found.append((stack.call.rule.start, self._pushed(stack.above, stack.call, stack.count - 1)))
        return found

    def _pushed(self, above: Stack, call: Call, count: int) -> Stack:
        found = above.children.get((call, count))
        if found is None:
            far = self._distance[call.target] + count * self._distance[call.rule.start] + above.distance
            found = above.children[call, count] = Stack(call, count, above, far)
        return found


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces with those that are bytes in one where they are neighbours."""
    found: list[Piece] = []
    for are_bytes, group in itertools.groupby(pieces, lambda piece: isinstance(piece, bytes)):
        run = list(group)
        found += [b"".join(piece for piece in run if isinstance(piece, bytes))] if are_bytes else run
    return found


def _rank(symbol: int) -> int:
    return _RANK.get(symbol, len(_RANK))


def _preferred(first: int, last: int) -> int:
    """The symbol of a range that an ending writes."""
    if first == last or first >= SPECIAL:
        return first
    return next((byte for byte in _PREFERRED if first <= byte <= last), first)
