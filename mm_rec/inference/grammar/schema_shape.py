"""What a schema must be like before anything is made of it: the kind of value that each keyword takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm_rec.errors import ConfigError

_NUMBERS = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "minItems", "maxItems",
    "minProperties", "maxProperties",
)  # fmt: skip
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(_NUMBERS, (int, float)),
    **dict.fromkeys(("enum", "required", "prefixItems", "anyOf", "oneOf", "allOf"), (list,)),
    **dict.fromkeys(("properties", "patternProperties"), (dict,)),
    **dict.fromkeys(("items", "additionalProperties"), (dict, bool)),
    **dict.fromkeys(("pattern", "format", "$ref"), (str,)),
    "type": (str, list),
}
_OF_STRINGS = ("type", "required")


def require_schema(schema: Any) -> None:
    """Raise ConfigError for what is no schema, or has a keyword with a value of the wrong kind; not for those below."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise ConfigError(f"a schema is an object or a boolean, and not {_kind(schema)}")
    for keyword, kinds in _KINDS.items():
        value = schema.get(keyword)
        if keyword in schema and not isinstance(value, kinds):
            raise ConfigError(f"{keyword} cannot be {_kind(value)}")
        if (
            keyword in _OF_STRINGS
            and isinstance(value, list)
            and not all(isinstance(one, str) for one in value)
        ):
            raise ConfigError(f"{keyword} is a list of strings")


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}.get(
        type(value), "a number"
    )
