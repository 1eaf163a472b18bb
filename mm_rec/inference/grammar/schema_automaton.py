"""The JSON of a schema as an automaton, written on one line as the grammars ask for it.

It may take more than the schema does (a most of items, a multiple of something), never less of what an ending needs:
the text is held to the schema by llguidance, and every ending is tried on it.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from types import NoneType
from typing import Any
from urllib.parse import unquote

from mm_rec.errors import ConfigError
from mm_rec.inference.grammar.automaton import PushdownAutomaton
from mm_rec.inference.grammar.checked_schema import FAR_MAXIMUM, FAR_MINIMUM, UNIQUE, require_kinds
from mm_rec.inference.grammar.formats import FORMATS
from mm_rec.inference.grammar.integers import integer_pattern
from mm_rec.inference.grammar.merged_schema import (
    COMBINING,
    Schema,
    has_constraints,
    merged_schema,
    plain_schema,
)
from mm_rec.inference.grammar.patterns import PatternCompiler, shortest_match
from mm_rec.inference.grammar.transitions import Fragment, GrammarTooLargeError

MAX_ALTERNATIVES = 512  # of combined schemas
# Schemas that are looked at, each as often as it is: those that are put together may grow without end.
MAX_SCHEMAS = 200_000
_TYPES = ("null", "boolean", "string", "number", "array", "object")
_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
MAX_OPTIONAL = 1_000  # properties of one object that may be left out


class SchemaCompiler:
    """Compiles one schema, and what it refers to, into an automaton."""

    def __init__(self, automaton: PushdownAutomaton, schema: Schema) -> None:
        self._automaton, self._whole = automaton, schema
        self._strings = PatternCompiler(automaton, json_string=True)
        self._joined = PatternCompiler(automaton, json_string=True, inline=True)  # for intersections
        self._plain = PatternCompiler(automaton)
        self._rules: dict[str, Fragment] = {}  # by reference, and of whatever it may be by its name
        self._seen = 0  # schemas

    def compile(self) -> Fragment:
        """Compile it; raises ConfigError where nothing can follow it."""
        return self._require(self._value(self._whole, frozenset()))

    def _look_at(self, schema: Any) -> None:
        """Raise ConfigError for one too many, and for what is no schema: a reference may name anything."""
        require_kinds(schema)
        self._automaton.check()
        self._seen += 1
        if self._seen > MAX_SCHEMAS:
            raise GrammarTooLargeError("its references grow without end. Make it flatter")

    def _require(self, found: Fragment | None) -> Fragment:
        if found is None:
            raise ConfigError("no value follows it")
        return found

    def _value(self, schema: Schema, within: frozenset[str]) -> Fragment | None:
        """A value; None where there is none. `within`: references that led here, and are no way to an end again."""
        self._look_at(schema)
        if schema is False:
            return None
        if schema is True or not schema:
            return self._called("anything", self._anything)
        reference = schema.get("$ref")
        if isinstance(reference, str) and not has_constraints(schema, "$ref"):
            return self._referred(reference, within)
        for name in ("anyOf", "oneOf"):
            if isinstance(schema.get(name), Sequence) and not has_constraints(schema, name):
                return self._either(self._value(one, within) for one in schema[name])
        if not schema.keys() & COMBINING:
            return self._flat(plain_schema(schema))
        # By its text, because what is put together may be in itself, and is made anew wherever it is.
        return self._called(json.dumps(schema), lambda: self._combined(schema, within))

    def _combined(self, schema: Mapping[str, Any], within: frozenset[str]) -> Fragment | None:
        return self._either(self._flat(one) for one in self._alternatives(schema, within))

    def _either(self, found: Iterable[Fragment | None]) -> Fragment | None:
        ways = [one for one in found if one is not None]
        return ways[0] if len(ways) == 1 else self._automaton.alternatives(ways) if ways else None

    def _called(self, name: str, make: Callable[[], Fragment | None]) -> Fragment:
        """A rule that is made once, and called from wherever it is needed."""
        if name not in self._rules:
            rule = self._automaton.fragment()
            self._rules[name] = rule  # known before it is made: it may be in itself
            body = make()
            if body is not None:
                self._automaton.epsilon(rule.start, body.start)
                self._automaton.epsilon(body.end, rule.end)
        return self._automaton.call(self._rules[name])

    def _referred(self, reference: str, within: frozenset[str]) -> Fragment | None:
        if reference in within:
            return None
        return self._called(reference, lambda: self._value(self._target(reference), within | {reference}))

    def _target(self, reference: str) -> Schema:
        """What a reference names; anything where that is not known, which llguidance then refuses."""
        found: Any = self._whole
        for escaped in unquote(reference.removeprefix("#")).split("/")[1:]:
            part = escaped.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping):
                found = found.get(part, True)
            elif (
                isinstance(found, Sequence)
                and not isinstance(found, str)
                and part.isdigit()
                and int(part) < len(found)
            ):
                found = found[int(part)]
            else:
                return True
        return found if isinstance(found, Mapping | bool) else True

    # Schemas that are put together.

    def _alternatives(self, schema: Schema, within: frozenset[str]) -> list[dict[str, Any]]:
        """Schemas without $ref, anyOf, oneOf and allOf, of which a value follows one."""
        self._look_at(schema)
        if schema is False:
            return []
        if schema is True:
            return [{}]
        found: list[dict[str, Any]] = [plain_schema(schema)]
        parts: list[list[dict[str, Any]]] = []
        reference = schema.get("$ref")
        if isinstance(reference, str):
            if reference in within:
                return []
            parts.append(self._alternatives(self._target(reference), within | {reference}))
        choices = [schema[name] for name in ("anyOf", "oneOf") if isinstance(schema.get(name), Sequence)]
        parts += [[one for part in choice for one in self._alternatives(part, within)] for choice in choices]
        if isinstance(schema.get("allOf"), Sequence):
            parts += [self._alternatives(part, within) for part in schema["allOf"]]
        for part in parts:
            self._automaton.check()
            if len(found) * len(part) > MAX_ALTERNATIVES:
                raise GrammarTooLargeError(
                    f"its combinations are too large: more than {MAX_ALTERNATIVES} of anyOf and allOf. Make them fewer"
                )
            found = [self._merge(one, other) for one, other in itertools.product(found, part)]
        return found

    def _merge(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
        self._automaton.check()
        return merged_schema(one, other)

    # Values of a kind.

    def _flat(self, schema: Mapping[str, Any]) -> Fragment | None:
        if not schema:
            return self._called("anything", self._anything)
        types = schema.get("type", _TYPES)
        types = [types] if isinstance(types, str) else list(types)
        if "enum" in schema:
            return self._enum(schema["enum"], schema, types)
        make = {
            "null": lambda _: self._automaton.literal(b"null"),
            "boolean": lambda _: self._called(
                "boolean", lambda: self._automaton.literals([b"true", b"false"])
            ),
            "string": self._string,
            "number": self._number,
            "integer": self._integer,
            "array": self._array,
            "object": self._object,
        }
        return self._either(make[kind](schema) for kind in types if kind in make)

    def _anything(self) -> Fragment | None:
        return self._flat({"type": list(_TYPES)})

    def _enum(
        self, values: Sequence[Any], schema: Mapping[str, Any], types: Sequence[str]
    ) -> Fragment | None:
        fitting = [value for value in values if "type" not in schema or _kind(value) & set(types)]
        if not fitting:
            return None
        return self._automaton.literals(map(_json_text, fitting))

    def _string(self, schema: Mapping[str, Any]) -> Fragment:
        patterns = [
            *schema.get("pattern", ()),
            *(FORMATS[name] for name in schema.get("format", ()) if name in FORMATS),
        ]
        least = int(schema.get("minLength", 0))
        if not patterns and least == 0:
            return self._called("string", lambda: self._quoted([self._strings.characters(0)]))
        counts = not patterns or least > max(map(shortest_match, patterns))
        characters = self._joined if len(patterns) + counts > 1 else self._strings
        bodies = [characters.compile(pattern, search=True) for pattern in patterns]
        if counts:
            bodies.append(characters.characters(least))
        return self._quoted(bodies)

    def _quoted(self, bodies: Sequence[Fragment]) -> Fragment:
        """A string that is in all of these."""
        body = bodies[0]
        for other in bodies[1:]:
            body = self._automaton.intersection(body, other)
        return self._automaton.sequence([self._automaton.literal(b'"'), body, self._automaton.literal(b'"')])

    def _integer(self, schema: Mapping[str, Any]) -> Fragment | None:
        pattern = integer_pattern(*_bounds(schema))
        return None if pattern is None else self._called(pattern, lambda: self._plain.compile(pattern))

    def _number(self, schema: Mapping[str, Any]) -> Fragment | None:
        """Within bounds the integers, and fractions whose whole part is within the bounds' own: llguidance writes no
        exponents there. Integers are not left to it, which would also take an exclusive bound: 0 of (0, 0.5].
        """
        if _bounds(schema) == (None, None):
            return self._called("number", lambda: self._plain.compile(_NUMBER))
        if FAR_MINIMUM in schema or FAR_MAXIMUM in schema:  # nobody else holds to them
            return self._integer(schema)
        least = max(
            (schema[key] for key in ("minimum", "exclusiveMinimum") if key in schema), default=-math.inf
        )
        most = min(
            (schema[key] for key in ("maximum", "exclusiveMaximum") if key in schema), default=math.inf
        )
        whole = integer_pattern(
            *(None if math.isinf(bound) else math.trunc(bound) for bound in (least, most))
        )
        parts = [whole] * (whole is not None) + ["-0"] * (least < 0 and most > -1)
        fractions = [self._plain.compile(rf"(?:{part})\.[0-9]+") for part in parts]
        return self._either([self._integer(schema), *fractions])

    def _array(self, schema: Mapping[str, Any]) -> Fragment | None:
        make = self._automaton
        first, rest = schema.get("prefixItems", ()), schema.get("items", True)
        least, most = int(schema.get("minItems", 0)), schema.get("maxItems", math.inf)
        rule = self._value(rest, frozenset()) if most > len(first) else None
        start, end = make.state(), make.state()
        place = make.extend(start, b"[")  # after so many items
        if schema.get(UNIQUE) is True:
            make.mark_unique(place)
        for number in range(max(len(first), 1)):
            if number >= least:
                make.extend_to(place, b"]", end)
            if number < len(first):
                item = self._value(first[number], frozenset())
            else:
                item = None if rule is None else make.call(rule)
            if item is None or number >= most:
                return Fragment(start, end) if number >= least else None
            make.epsilon(make.extend(place, b", " if number else b""), item.start)
            place = item.end
        missing = least - max(len(first), 1)
        if rule is None and missing > 0:
            return None
        if rule is not None:
            more = make.sequence([make.literal(b", "), make.call(rule)])
            if missing > 0:
                counted = make.call(more, missing)
                make.epsilon(place, counted.start)
                place = counted.end
            loop = make.loop(make.call(more))
            make.epsilon(place, loop.start)
            place = loop.end
        make.extend_to(place, b"]", end)
        return Fragment(start, end)

    def _object(self, schema: Mapping[str, Any]) -> Fragment | None:
        """Properties in the order of the schema, then those without a name of their own."""
        make = self._automaton
        required = dict.fromkeys(map(str, schema.get("required", ())))
        properties = dict(schema.get("properties", {}))
        unnamed = {
            "anyOf": [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties", True)]
        }
        properties |= {name: unnamed for name in required if name not in properties}
        if len(properties) - len(required) > MAX_OPTIONAL:
            raise GrammarTooLargeError(
                f"an object has more than {MAX_OPTIONAL:,} properties that may be left out. Require them, or drop some"
            )
        start, end = make.state(), make.state()
        first, more = make.extend(start, b"{"), make.state()  # before the first property, and after one
        for name, value in properties.items():
            body = self._value(value, frozenset())
            if body is None and name in required:
                return None
            after_first, after_more = make.state(), make.state()
            if body is not None:
                key = make.state()
                make.epsilon(first, key)
                make.extend_to(more, b", ", key)
                make.epsilon(make.extend(key, _json_text(name) + b": "), body.start)
                make.epsilon(body.end, after_more)
            if name not in required:
                make.epsilon(first, after_first)
                make.epsilon(more, after_more)
            first, more = after_first, after_more
        for key_text, value in self._other_properties(schema):
            make.epsilon(first, key_text.start)
            make.extend_to(more, b", ", key_text.start)
            make.extend_to(key_text.end, b": ", value.start)
            make.epsilon(value.end, more)
        if int(schema.get("minProperties", 0)) == 0:
            make.extend_to(first, b"}", end)
        make.extend_to(more, b"}", end)
        return Fragment(start, end)

    def _other_properties(self, schema: Mapping[str, Any]) -> Iterator[tuple[Fragment, Fragment]]:
        """The names and values of properties that the schema does not name."""
        for pattern, value in schema.get("patternProperties", {}).items():
            if (body := self._value(value, frozenset())) is not None:
                yield self._quoted([self._strings.compile(pattern, search=True)]), body
        if (body := self._value(schema.get("additionalProperties", True), frozenset())) is not None:
            yield self._string({}), body


def _json_text(value: Any) -> bytes:
    """A value as llguidance writes it: numbers without an exponent, whole ones without a fraction."""
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f").removesuffix(".0").encode()
    if isinstance(value, list):
        return b"[" + b", ".join(map(_json_text, value)) + b"]"
    if isinstance(value, dict):
        return (
            b"{" + b", ".join(_json_text(key) + b": " + _json_text(one) for key, one in value.items()) + b"}"
        )
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f").encode("utf-8", "replace")


def _kind(value: Any) -> set[str]:
    """The types that a value is of."""
    if isinstance(value, float) and value.is_integer():
        return {"number", "integer"}
    return {
        NoneType: {"null"},
        bool: {"boolean"},
        int: {"integer", "number"},
        float: {"number"},
        str: {"string"},
        list: {"array"},
    }.get(type(value), {"object"})


def _bounds(schema: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """The least and the greatest integer that a schema takes."""
    least = [math.ceil(schema[key]) for key in ("minimum", FAR_MINIMUM) if key in schema]
    most = [math.floor(schema[key]) for key in ("maximum", FAR_MAXIMUM) if key in schema]
    if "exclusiveMinimum" in schema:
        least.append(math.floor(schema["exclusiveMinimum"]) + 1)
    if "exclusiveMaximum" in schema:
        most.append(math.ceil(schema["exclusiveMaximum"]) - 1)
    return (max(least) if least else None), (min(most) if most else None)
