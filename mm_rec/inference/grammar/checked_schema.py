"""JSON schemas as grammars read them: what llguidance would read wrongly said otherwise, or refused."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from mm_rec.errors import ConfigError, truncated
from mm_rec.inference.grammar.formats import FORMATS
from mm_rec.inference.grammar.vocabulary import MAX_DIGITS

MAX_SCHEMA_DEPTH = 60  # schemas within schemas
# What llguidance does not know, under names that it passes over: all of it is held to by the automaton.
UNIQUE, FAR_MINIMUM, FAR_MAXIMUM = "x-unique-items", "x-minimum", "x-maximum"
_FAR = {
    "minimum": FAR_MINIMUM,
    "exclusiveMinimum": FAR_MINIMUM,
    "maximum": FAR_MAXIMUM,
    "exclusiveMaximum": FAR_MAXIMUM,
}
_FAR_BOUND = 2**63 - 1
_ONE = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
_LIST = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == value // 1


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)


# Keywords, what their values are, and that in words.
_KINDS: tuple[tuple[frozenset[str], Callable[[Any], bool], str], ...] = (
    (
        frozenset({"type"}),
        lambda value: isinstance(value, str) or _are_texts(value),
        "a name or a list of names",
    ),
    (frozenset({"required"}), _are_texts, "a list of names"),
    (frozenset({"enum", *_LIST}), lambda value: isinstance(value, list | tuple), "a list"),
    (frozenset(_NAMED), lambda value: isinstance(value, Mapping), "an object"),
    (frozenset({"pattern", "format", "$ref"}), lambda value: isinstance(value, str), "a text"),
    (frozenset({*_FAR, *_FAR.values(), "multipleOf"}), _is_number, "a number"),
    (
        frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}),
        _is_count,
        "a whole number, not negative",
    ),
    (frozenset({"uniqueItems"}), lambda value: isinstance(value, bool), "true or false"),
)


def map_schemas(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]], depth: int = 0) -> Any:
    """A schema with each schema in it changed; raises ConfigError for what is none."""
    _require_schema(schema)
    if isinstance(schema, bool):
        return schema
    if depth > MAX_SCHEMA_DEPTH:
        raise ConfigError(
            f"a schema is nested more than {MAX_SCHEMA_DEPTH} deep. Make it flatter, with $defs and $ref"
        )
    result = {str(key): value for key, value in schema.items()}
    for key in result.keys() & set(_ONE):
        result[key] = map_schemas(result[key], change, depth + 1)
    for key in result.keys() & set(_LIST):
        if isinstance(result[key], list | tuple):
            result[key] = [map_schemas(one, change, depth + 1) for one in result[key]]
    for key in result.keys() & set(_NAMED):
        if isinstance(result[key], Mapping):
            result[key] = {name: map_schemas(one, change, depth + 1) for name, one in result[key].items()}
    return change(result)


def _require_schema(schema: Any) -> None:
    if not isinstance(schema, bool | Mapping):
        raise ConfigError(f"a schema is an object, true or false, and no {type(schema).__name__}. Mend it")


def require_kinds(schema: Any) -> None:
    """Raise ConfigError for what is no schema, and for a keyword whose value is not of its kind."""
    _require_schema(schema)
    for keywords, fits, what in () if isinstance(schema, bool) else _KINDS:
        for key in schema.keys() & keywords:
            if not fits(schema[key]):
                given = truncated(json.dumps(schema[key], ensure_ascii=False, default=str), 60)
                raise ConfigError(f"{key} of a schema is {what}, and here it is {given}. Mend it")


def checked_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema as llguidance reads it; refuses what it would not hold a text to."""
    # What has the names that we use ourselves is a note of somebody else's.
    schema = {key: value for key, value in schema.items() if key not in (UNIQUE, FAR_MINIMUM, FAR_MAXIMUM)}
    require_kinds(schema)
    least, named = schema.get("minProperties", 0), schema.get("required", ())
    if least > max(1, len(named)):
        # It does not see that a model gives one name twice.
        raise ConfigError(
            f"a schema asks for at least {least} properties (minProperties) whatever their names, which cannot be "
            "assured. Name them in `required`"
        )
    checked = _with_named_properties(_with_near_bounds(schema))
    if checked.pop("uniqueItems", False):
        checked[UNIQUE] = True
    if "format" in checked and checked["format"] not in FORMATS:
        del checked["format"]  # a note for people and programs, which says nothing of the text
    if "$ref" in checked:  # a URI is ASCII, names of definitions often are not
        checked["$ref"] = quote(checked["$ref"], safe=string.punctuation, errors="replace")
    return checked


def _with_near_bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with the bounds that llguidance reads wrongly, beyond 64 bits, under other names."""
    changed = dict(schema)
    for key, far in _FAR.items():
        bound = changed.get(key)
        if bound is not None and abs(bound) >= _FAR_BOUND:
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
