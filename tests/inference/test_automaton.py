"""The automaton of a grammar: what it takes, and that its endings are the shortest that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import date
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from waiting import little_work

from mm_rec.errors import ConfigError
from mm_rec.inference.grammar.automaton import Configurations, PushdownAutomaton
from mm_rec.inference.grammar.formats import FORMATS
from mm_rec.inference.grammar.integers import integer_pattern
from mm_rec.inference.grammar.lark_automaton import build_automaton
from mm_rec.inference.grammar.patterns import PatternCompiler
from mm_rec.inference.grammar.schema_automaton import MAX_OPTIONAL, SchemaCompiler
from mm_rec.inference.grammar.transitions import MAX_STATES, SPECIAL, GrammarTooLargeError

PATTERNS = (
    r"[a-z]+@[a-z]+\.tr",
    r"(ab|a)*c?",
    r"[^}]*x",
    r"[^\]\"]{2,4}\\",
    r"(?i:aĞb)[ç-ş]{3}",
    r"(a{2,3}b){4,}",
    r"[\w.-]{12}\s\d",
    r"\x00|.\t?",
    r"(?:|x)(y|)z{0,3}",
    r"[^a-y]+€",
)


def of_pattern(pattern: str, **options: bool) -> PushdownAutomaton:
    automaton = PushdownAutomaton()
    automaton.finish(PatternCompiler(automaton, **options).compile(pattern))
    return automaton


def of_schema(schema: Any) -> PushdownAutomaton:
    automaton = PushdownAutomaton()
    automaton.finish(SchemaCompiler(automaton, schema).compile())
    return automaton


def places(automaton: PushdownAutomaton, text: bytes) -> Iterator[Configurations]:
    place = automaton.begin()
    yield place
    for byte in text:
        place = automaton.advance(place, byte)
        yield place


def is_end(automaton: PushdownAutomaton, place: Configurations) -> bool:
    return any(automaton.distance(one) == 0 for one in place)


def accepts(automaton: PushdownAutomaton, text: bytes) -> bool:
    return is_end(automaton, list(places(automaton, text))[-1])


def shortest_ending(automaton: PushdownAutomaton, place: Configurations) -> bytes:
    (piece,) = automaton.ending(place[0]) or [b""]
    assert isinstance(piece, bytes)
    return piece


def distance_by_search(automaton: PushdownAutomaton, place: Configurations) -> int:
    """The slow reference: all texts, one byte longer at a time."""
    layer, seen = [tuple(place)], set[Any]()
    for length in range(40):
        if any(is_end(automaton, one) for one in layer):
            return length
        following = [
            tuple(automaton.advance(one, symbol)) for one in layer for symbol in automaton.next_symbols(one)
        ]
        layer = [one for one in dict.fromkeys(following) if one not in seen]
        seen.update(layer)
    raise AssertionError("no ending")


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_pattern_takes_what_python_takes_and_ends_as_soon_as_it_can(
    pattern: str, data: st.DataObject
) -> None:
    text = data.draw(st.from_regex(pattern, fullmatch=True).filter(lambda text: len(text) < 30))
    other = data.draw(st.text(max_size=4, alphabet='abxyzĞç€\\}".1 \t'))
    automaton = of_pattern(pattern)
    assert accepts(automaton, other.encode()) or not re.fullmatch(pattern, other, re.ASCII)
    if not re.fullmatch(pattern, text, re.ASCII):  # letters of other scripts, which \w is not for JSON schema
        return
    for length, place in enumerate(places(automaton, text.encode())):
        whole = text.encode()[:length] + shortest_ending(automaton, place)
        assert re.fullmatch(pattern, whole.decode(), re.ASCII)
        assert len(whole) - length == automaton.distance(place[0])
    assert is_end(automaton, place)


@pytest.mark.parametrize("pattern", PATTERNS[:-1])
def test_distances_are_those_of_a_search(pattern: str) -> None:
    automaton = of_pattern(pattern)
    place = automaton.begin()
    for symbol in b"aab":
        assert automaton.distance(place[0]) == distance_by_search(automaton, place)
        place = automaton.advance(place, symbol) or place


@settings(max_examples=30, deadline=None, derandomize=True)
@given(text=st.text(max_size=8))
def test_strings_are_written_as_json(text: str) -> None:
    automaton = of_pattern("(?s:.*)", json_string=True)
    assert accepts(automaton, json.dumps(text, ensure_ascii=False)[1:-1].replace("\x7f", "\\u007f").encode())
    for wrong in (b'"', b"\x1f", b"\\", b"\\x", b"\xff", b"\xed\xa0\x80"):  # the last is half of a pair
        assert not accepts(automaton, wrong)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.none() | st.integers(-1200, 1200), st.none() | st.integers(-1200, 1200), st.integers(-1300, 1300))
def test_integers_of_a_range(least: int | None, most: int | None, number: int) -> None:
    pattern = integer_pattern(least, most)
    within = (least is None or number >= least) and (most is None or number <= most)
    assert bool(pattern and re.fullmatch(pattern, str(number))) == within
    assert not (pattern and re.fullmatch(pattern, f"0{abs(number)}"))


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_what_they_are_called(name: str) -> None:
    """Texts of our own; what others find of them is in the tests of the grammars."""
    right = {
        "date": "2024-02-29", "time": "23:59:60Z", "date-time": "1990-12-31T15:59:60.5-08:00",
        "duration": "P3Y6M4DT12H", "email": "ay.b+c@d-e.tr", "hostname": "a-1.b", "ipv4": "255.0.10.99",
        "ipv6": "fe80::1:2", "uuid": "2eb8aa08-AA98-11ea-b4aa-73b441d16380", "uri": "https://a.b/c?d=%20#e",
    }  # fmt: skip
    wrong = {
        "date": "2024-02-30", "time": "24:00:00Z", "date-time": "1990-12-31", "duration": "P", "email": "a@-b",
        "hostname": "-a", "ipv4": "256.0.0.1", "ipv6": "1::2::3", "uuid": "2eb8aa08", "uri": "a b",
    }  # fmt: skip
    automaton = of_pattern(FORMATS[name].removeprefix("^").removesuffix("$"))
    if name == "date":
        assert date.fromisoformat(shortest_ending(automaton, automaton.begin()).decode())
    assert accepts(automaton, right[name].encode())
    assert not accepts(automaton, wrong[name].encode())


@pytest.mark.parametrize(
    ("schema", "ending"),
    [
        ({"type": "string", "pattern": "^[a-z]+$", "minLength": 5}, b'"nnnnn"'),
        ({"allOf": [{"pattern": "^a"}, {"pattern": "b$"}], "type": "string"}, b'"ab"'),
        ({"type": "array", "items": {"type": "integer", "minimum": 70}, "minItems": 3}, b"[70, 70, 70]"),
        ({"type": "array", "items": {"const": 1}, "prefixItems": [{"const": 2}, {"const": 3}], "minItems": 5},
         b"[2, 3, 1, 1, 1]"),
        ({"enum": ["abc", "ab", 7.0]}, b"7"),
        ({"type": "object", "patternProperties": {"^x": {"const": 1}}, "minProperties": 1,
          "additionalProperties": False}, b'{"x": 1}'),
        ({"$ref": "#/$defs/k%C3%B6k", "$defs": {"kök": {"type": "object", "properties": {"b": {"$ref": "#/$defs/kök"}},
          "required": []}}}, b"{}"),
    ],
)  # fmt: skip
def test_the_shortest_value_of_a_schema(schema: dict[str, Any], ending: bytes) -> None:
    automaton = of_schema(schema)
    found = shortest_ending(automaton, automaton.begin())
    assert len(found) == len(ending) == automaton.distance(automaton.begin()[0])
    jsonschema.validate(json.loads(found), schema, cls=jsonschema.Draft202012Validator)


def test_a_schema_that_is_itself_is_no_way_to_an_end() -> None:
    automaton = of_schema(
        {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"const": 12}]}}, "$ref": "#/$defs/a"}
    )
    assert shortest_ending(automaton, automaton.begin()) == b"12"


def test_special_tokens_are_symbols_of_their_own() -> None:
    grammar = {
        "grammars": [{"name": "start", "lark_grammar": 'start: <[7]> /a|b/{2,5} "ş" ( <[9]> | "longer" )?'}]
    }
    automaton = build_automaton(json.dumps(grammar))
    assert automaton.ending(automaton.begin()[0]) == [7, "aaş".encode()]
    place = automaton.begin()
    for symbol in [SPECIAL + 7, *"baaş".encode(), SPECIAL + 9]:
        place = automaton.advance(place, symbol)
    assert automaton.ending(place[0]) == []


# What is too much.


def test_what_is_counted_takes_no_states() -> None:
    automaton = of_schema({"type": "string", "pattern": "^(.{1000}){1000}$"})
    assert automaton.num_states < 100
    assert automaton.distance(automaton.begin()[0]) == 1_000_002


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^" + "abcdefghij" * 8_000 + "$"},
        {"type": "string", "pattern": "^[" + "".join(chr(0x4E00 + 2 * i) for i in range(9_000)) + "]{900}$",
         "minLength": 1_000},
        {"enum": [f"değer {number}" for number in range(60_000)]},
        {"type": "object", "properties": {f"p{number}": {} for number in range(MAX_OPTIONAL + 1)}},
        {"allOf": [{"anyOf": [{"required": [f"p{i}"]}, {"required": [f"q{i}"]}]} for i in range(20)]},
    ],
)  # fmt: skip
def test_a_grammar_has_a_budget(schema: dict[str, Any]) -> None:
    with pytest.raises(GrammarTooLargeError, match="more than"):
        of_schema(schema)


def test_building_can_be_ended() -> None:
    calls: list[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise TimeoutError

    values = {"enum": [f"değer {number}" for number in range(60_000)]}
    put_together = {"type": "null", "allOf": [{"required": [f"p{number}"]} for number in range(1_000)]}
    for schema in (values, put_together):
        calls.clear()
        grammar = {
            "grammars": [{"name": "start", "lark_grammar": "start: @v"}, {"name": "v", "json_schema": schema}]
        }
        with pytest.raises(TimeoutError):
            build_automaton(json.dumps(grammar), check)
        assert len(calls) == 3 < MAX_STATES


def test_types_said_many_times_are_put_together_at_once() -> None:
    schema = {"allOf": [{"type": ["string"] * 100_000 + ["null"]}, {"type": ["null"] * 100_000}]}
    with little_work():
        automaton = of_schema(schema)
    assert accepts(automaton, b"null") and not accepts(automaton, b'"n"')


@pytest.mark.parametrize(
    "schema", [False, {"enum": []}, {"type": "integer", "minimum": 5, "maximum": 1}, {"$ref": "#"}]
)
def test_what_has_no_value_is_refused(schema: Any) -> None:
    with pytest.raises(ConfigError, match=r"no value|no text"):
        of_schema(schema)
