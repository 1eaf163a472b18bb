"""Parsing of YAML and JSON that refuses a key that stands twice, since only one of the values would count."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import yaml

INT64_MAX = 2**63 - 1  # what a signed number of 64 bits holds


class DuplicateKey(ValueError):
    """A key that stands twice in one mapping; `lines` are those of both, from 1, where they are known."""

    def __init__(self, key: object, lines: tuple[int, int] | None = None) -> None:
        self.key, self.lines = key, lines
        where = "" if lines is None else f", in lines {lines[0]} and {lines[1]}"
        super().__init__(f"the key {key!r} stands twice{where}; only one of them can count. Remove the other")


class _Loader(yaml.SafeLoader):
    """Reads plain values only, as its parent does."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node] | None) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)  # type: ignore[arg-type]
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        first: dict[tuple[str, str], yaml.ScalarNode] = {}
        for key in keys:
            if (known := first.setdefault((key.tag, key.value), key)) is not key:
                raise DuplicateKey(key.value, (known.start_mark.line + 1, key.start_mark.line + 1))
        return node


def parse_yaml(text: str) -> Any:
    """Parse YAML text to plain values; raises yaml.YAMLError, or DuplicateKey with both lines."""
    return yaml.load(text, _Loader)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the mapping of a decoder's pairs; raises DuplicateKey."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise DuplicateKey(key)
        values[key] = value
    return values


JSON_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)


def parse_json(text: str) -> Any:
    """Parse JSON text; raises ValueError, of which DuplicateKey names both lines where there are several."""
    try:
        return JSON_DECODER.decode(text)
    except DuplicateKey as error:
        raise with_line_numbers(error, text) from None


def with_line_numbers(error: DuplicateKey, text: str) -> DuplicateKey:
    """Add the lines of both keys in JSON text to an error; JSON is YAML, but for tabs, and YAML knows its lines."""
    try:
        yaml.compose(text.replace("\t", " "), _Loader)
    except DuplicateKey as found:
        return found
    except yaml.YAMLError:
        pass
    return error


def find_invalid_number(value: Any, most: float = math.inf, place: str = "") -> str | None:
    """Describe the first number that is not finite or over `most`; None where there is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{place} is {value}, and must be a finite number"
    if isinstance(value, int | float) and abs(value) > most:
        return f"{place} is {value}, which is too large"
    if isinstance(value, Mapping | list | tuple):
        for key, one in value.items() if isinstance(value, Mapping) else enumerate(value):
            if wrong := find_invalid_number(one, most, f"{place}.{key}" if place else str(key)):
                return wrong
    return None
