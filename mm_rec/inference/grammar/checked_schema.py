"""JSON schemas as grammars read them: what llguidance would read wrongly said otherwise, or refused."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from mm_rec.errors import ConfigError
from mm_rec.inference.grammar.formats import FORMATS
from mm_rec.inference.grammar.schema_automaton import FAR_MAXIMUM, FAR_MINIMUM, UNIQUE
from mm_rec.inference.grammar.vocabulary import MAX_DIGITS

MAX_SCHEMA_DEPTH = 60  # schemas within schemas
_FAR = {
    "minimum": FAR_MINIMUM,
    "exclusiveMinimum": FAR_MINIMUM,
    "maximum": FAR_MAXIMUM,
    "exclusiveMaximum": FAR_MAXIMUM,
}
_NOTES = ("$schema", "$comment", "title", "description")
_FAR_BOUND = 2**63 - 1
_ONE = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
_LIST = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def map_schemas(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]], depth: int = 0) -> Any:
    """A schema with each schema in it changed; what is no object stays for the compiler to judge."""
    if not isinstance(schema, Mapping):
        return schema
    if depth > MAX_SCHEMA_DEPTH:
        raise ConfigError(
            f"a schema is nested more than {MAX_SCHEMA_DEPTH} deep. Make it flatter, with $defs and $ref"
        )
    result = {str(key): value for key, value in schema.items()}
    for key in result.keys() & set(_ONE):
        result[key] = map_schemas(result[key], change, depth + 1)
    for key in result.keys() & set(_LIST):
        if isinstance(result[key], Sequence) and not isinstance(result[key], str):
            result[key] = [map_schemas(one, change, depth + 1) for one in result[key]]
    for key in result.keys() & set(_NAMED):
        if isinstance(result[key], Mapping):
            result[key] = {name: map_schemas(one, change, depth + 1) for name, one in result[key].items()}
    return change(result)


def checked_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema as llguidance reads it; refuses what it would not hold a text to."""
    least, named = schema.get("minProperties", 0), schema.get("required", ())
    if isinstance(least, int) and least > max(1, len(named) if isinstance(named, Sequence) else 0):
        # It does not see that a model gives one name twice.
        raise ConfigError(
            f"a schema asks for at least {least} properties (minProperties) whatever their names, which cannot be "
            "assured. Name them in `required`"
        )
    checked = _with_named_properties(_with_near_bounds(schema))
    if isinstance(checked.get("uniqueItems"), bool) and checked.pop("uniqueItems"):
        checked[UNIQUE] = True
    if isinstance(checked.get("format"), str) and checked["format"] not in FORMATS:
        del checked["format"]  # a note for people and programs, which says nothing of the text
    reference = checked.get("$ref")
    if isinstance(reference, str):  # a URI is ASCII, names of definitions often are not
        checked["$ref"] = quote(reference, safe=string.punctuation, errors="replace")
    return checked


def _with_near_bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with the bounds that llguidance reads wrongly, beyond 64 bits, under other names."""
    changed = dict(schema)
    for key, far in _FAR.items():
        bound = changed.get(key)
        if isinstance(bound, int | float) and not isinstance(bound, bool) and abs(bound) >= _FAR_BOUND:
            if abs(bound) >= 10**MAX_DIGITS:
                raise ConfigError(
                    f"a schema has a {key} of more than {MAX_DIGITS} digits, and no number is written so long. "
                    "Leave it out"
                )
            exclusive = (key == "exclusiveMinimum") - (key == "exclusiveMaximum")
            changed[far] = int(changed.pop(key)) + exclusive
    return changed


def _with_named_properties(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema of an object that says what its names are like by patterns of properties."""
    names = schema.get("propertyNames")
    if not isinstance(names, Mapping):
        return schema
    changed = {key: value for key, value in schema.items() if key != "propertyNames"}
    kept = {
        key: value
        for key, value in names.items()
        if key not in ("type", "$schema", "title", "description", UNIQUE)
    }
    if (
        names.get("type", "string") != "string"
        or "patternProperties" in schema
        or kept.keys() - {"pattern", "enum", "const"}
    ):
        raise ConfigError(
            "propertyNames is followed with the type string and one of pattern, enum and const, and without "
            "patternProperties. Say the rest of it otherwise"
        )
    if kept:
        patterns = [kept["pattern"]] if "pattern" in kept else []
        named = [*kept.get("enum", ()), *([kept["const"]] if "const" in kept else [])]
        if named:
            patterns.append("^(" + "|".join(re.escape(str(name)) for name in named) + ")$")
        if len(patterns) > 1 or not all(isinstance(pattern, str) for pattern in patterns):
            raise ConfigError(
                "propertyNames is followed with one of pattern, enum and const. Leave the others out"
            )
        value = changed.get("additionalProperties", True)
        changed |= {"patternProperties": {patterns[0]: value}, "additionalProperties": False}
    return changed
