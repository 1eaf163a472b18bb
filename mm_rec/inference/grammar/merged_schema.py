"""What schemas say that are put together (`allOf`, and keywords beside `$ref` and `anyOf`): one schema of it all."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from mm_rec.inference.grammar.checked_schema import FAR_MAXIMUM, FAR_MINIMUM, UNIQUE
from mm_rec.inference.grammar.unique_items import canonical_json

_LARGEST = {FAR_MINIMUM, "minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}
_SMALLEST = {FAR_MAXIMUM, "maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}
COMBINING = {"$ref", "anyOf", "oneOf", "allOf"}
Schema = Mapping[str, Any] | bool


def has_constraints(schema: Mapping[str, Any], besides: str) -> bool:
    """Whether a schema says more of a value than by one keyword."""
    return bool(schema.keys() & (_KEYWORDS | COMBINING) - {besides})


_KEYWORDS = {
    "type", "enum", "const", "properties", "required", "additionalProperties", "patternProperties", "items",
    "prefixItems", "pattern", "format", UNIQUE, *_LARGEST, *_SMALLEST,
}  # fmt: skip


def plain_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What a schema itself says: patterns and formats as lists, a constant as an enum."""
    found = {key: value for key, value in schema.items() if key in _KEYWORDS}
    for key in ("pattern", "format"):
        if key in found:
            found[key] = [found[key]] if isinstance(found[key], str) else list(found[key])
    if "const" in found:
        found["enum"] = [found.pop("const")]
    return found


def merged_schema(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """A schema that a value follows where it follows both."""
    found = {**one, **other}
    for key in one.keys() & other.keys():
        a, b = one[key], other[key]
        if key in _LARGEST:
            found[key] = max(a, b)
        elif key in _SMALLEST:
            found[key] = min(a, b)
        elif key in ("pattern", "format", "required"):
            found[key] = list(dict.fromkeys([*a, *b]))
        elif key == "enum":
            allowed = set(map(canonical_json, b))
            found[key] = [value for value in a if canonical_json(value) in allowed]
        elif key == "type":
            found[key] = _common_types(a, b)
        elif key in ("properties", "patternProperties"):
            found[key] = {**a, **b, **{name: _both(a[name], b[name]) for name in a.keys() & b.keys()}}
        elif key in ("items", "additionalProperties"):
            found[key] = _both(a, b)
        elif key == "prefixItems":
            found[key] = [_both(*pair) for pair in itertools.zip_longest(a, b, fillvalue=True)]
    return found


def _both(one: Schema, other: Schema) -> Schema:
    if one is False or other is False:
        return False
    return {"allOf": [one, other]}


def _common_types(one: Any, other: Any) -> list[str]:
    first, second = (dict.fromkeys([given] if isinstance(given, str) else given) for given in (one, other))
    common = [kind for kind in first if kind in second or (kind == "integer" and "number" in second)]
    return common + [
        kind for kind in second if kind == "integer" and "number" in first and kind not in common
    ]
