"""Grammars, in the part of Lark's language that `lark_grammar.py` writes, as automata.

What a terminal must not match (`& ~/…/`) is left to llguidance: an ending that it does not take is not used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

from mm_rec.errors import ConfigError
from mm_rec.inference.grammar.automaton import PushdownAutomaton
from mm_rec.inference.grammar.patterns import PatternCompiler
from mm_rec.inference.grammar.schema_automaton import SchemaCompiler
from mm_rec.inference.grammar.transitions import SPECIAL, Fragment

_TOKEN = re.compile(
    r'\s*(?:(?P<text>"(?:[^"\\]|\\.)*")|/(?P<pattern>(?:[^/\\]|\\.)*)/|<\[(?P<special>\d+)\]>|@(?P<schema>\w+)'
    r"|\{(?P<repeat>\d+,\d+)\}|(?P<name>\w+)|(?P<sign>[()|?*&~]))"
)


def build_automaton(grammar: str, check: Callable[[], None] = lambda: None) -> PushdownAutomaton:
    """The automaton of a grammar's text; `check` may raise to end the work. Raises ConfigError for too large a one."""
    automaton = PushdownAutomaton(check)
    parts = json.loads(grammar)["grammars"]
    schemas = {part["name"]: part["json_schema"] for part in parts if "json_schema" in part}
    automaton.finish(_Rules(automaton, parts[0]["lark_grammar"], schemas).rule("start"))
    return automaton


class _Rules:
    """The rules of a grammar, each made when it is first named."""

    def __init__(self, automaton: PushdownAutomaton, text: str, schemas: dict[str, Any]) -> None:
        self._automaton, self._schemas = automaton, schemas
        self._patterns = PatternCompiler(automaton)
        self._texts = dict(line.split(": ", 1) for line in text.splitlines() if line.strip())
        self._made: dict[str, Fragment] = {}

    def rule(self, name: str) -> Fragment:
        """Return the fragment of a rule or a schema ("@NAME")."""
        if name not in self._made:
            if name.startswith("@"):
                self._made[name] = SchemaCompiler(self._automaton, self._schemas[name[1:]]).compile()
            else:
                self._made[name] = _Reader(
                    self._automaton, self._patterns, self.rule, self._texts[name]
                ).read()
        return self._made[name]


class _Reader:
    """Reads the right side of one rule: alternatives of sequences of items."""

    def __init__(
        self,
        automaton: PushdownAutomaton,
        patterns: PatternCompiler,
        rule: Callable[[str], Fragment],
        text: str,
    ) -> None:
        self._automaton, self._patterns, self._rule = automaton, patterns, rule
        self._tokens: list[tuple[str, str]] = []
        place = 0
        while place < len(text.rstrip()):
            found = _TOKEN.match(text, place)
            if found is None:
                raise ConfigError(f"a rule cannot be read: {text[place : place + 100]!r}")
            self._tokens.append((str(found.lastgroup), found[str(found.lastgroup)]))
            place = found.end()

    def read(self) -> Fragment:
        """Return the fragment of the whole."""
        return self._alternatives()

    def _next(self) -> tuple[str, str]:
        return self._tokens[0] if self._tokens else ("end", "")

    def _takes(self, sign: str) -> bool:
        if self._next() == ("sign", sign):
            self._tokens.pop(0)
            return True
        return False

    def _alternatives(self) -> Fragment:
        found = [self._sequence()]
        while self._takes("|"):
            found.append(self._sequence())
        return found[0] if len(found) == 1 else self._automaton.alternatives(found)

    def _sequence(self) -> Fragment:
        parts = []
        while self._next()[0] != "end" and self._next() not in (("sign", "|"), ("sign", ")")):
            parts.append(self._repeated())
            if self._takes("&"):  # never written but for what must not be
                self._takes("~")
                self._tokens.pop(0)
        return self._automaton.sequence(parts)

    def _repeated(self) -> Fragment:
        start = list(self._tokens)
        item = self._item()
        if self._takes("?"):
            return self._automaton.optional(item)
        least, most = 0, math.inf
        if self._next()[0] == "repeat":
            least, most = map(int, self._tokens.pop(0)[1].split(","))
        elif not self._takes("*"):
            return item
        after = self._tokens

        def again() -> Fragment:
            self._tokens = list(start)
            return self._item()

        loop = self._patterns.repeat(again, least, most)
        self._tokens = after
        return loop

    def _item(self) -> Fragment:
        kind, value = self._tokens.pop(0)
        make = self._automaton
        if kind == "text":
            return make.literal(json.loads(value).encode())
        if kind == "pattern":
            return self._patterns.compile(value.replace("\\/", "/"))
        if kind == "special":
            whole = make.fragment()
            make.edge(whole.start, SPECIAL + int(value), SPECIAL + int(value), whole.end)
            return whole
        if kind in ("name", "schema"):
            return make.call(self._rule(value if kind == "name" else f"@{value}"))
        inner = self._alternatives()  # after an opening parenthesis
        self._takes(")")
        return inner
