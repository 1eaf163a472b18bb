"""Recipes: strict sections, YAML files, and `--set section.key=value` overrides."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pydantic
import yaml

from mm_rec.errors import ConfigError
from mm_rec.strict_parsing import INT64_MAX, DuplicateKey, find_invalid_number, parse_yaml


class Section(pydantic.BaseModel):
    """One section of a recipe: immutable, and an unknown key is an error that names the nearest right one."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, defer_build=True
    )

    @pydantic.model_validator(mode="after")
    def _numbers(self) -> Self:
        """Refuse what overflows, and infinity and NaN where a field takes anything."""
        if wrong := find_invalid_number(dict(self), INT64_MAX):
            raise ValueError(wrong)
        return self

    @classmethod
    def read(cls, values: Mapping[str, Any], where: str = "recipe") -> Self:
        """Validate plain values; raises ConfigError with one line for each problem."""
        try:
            return cls.model_validate(dict(values))
        except pydantic.ValidationError as error:
            problems = [_explain(cls, dict(item)) for item in error.errors()]
            raise ConfigError(f"{where}: " + "; ".join(problems)) from error

    def replace(self, **values: Any) -> Self:
        """Return a validated copy with some values replaced; what was given, and no more, stays known as given."""
        return self.read({**dict(self), **values}).with_given(self.given())

    def given(self) -> list[str]:
        """The dotted keys that were given, rather than left to their defaults or derived."""
        return list(_given(self))

    def with_given(self, names: Iterable[str]) -> Self:
        """Return a copy of which only these dotted keys count as given."""
        heads: dict[str, list[str]] = {}
        for name in names:
            head, _, rest = name.partition(".")
            heads.setdefault(head, []).extend([rest] if rest else [])
        values = {
            key: value.with_given(heads.get(key, ())) if isinstance(value, Section) else value
            for key, value in self
        }
        return self.model_construct(_fields_set=set(heads), **values)


def _given(section: Section) -> Iterator[str]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if name not in section.model_fields_set:
            continue
        if isinstance(value, Section):
            yield from (f"{name}.{inner}" for inner in _given(value))
        else:
            yield name


def setting(
    default: Any, description: str, *, panel: str | None = None, option: str | None = None, **limits: Any
) -> Any:
    """A field of a section: its default, its description with the unit, and its option on the command line.

    `panel` groups the option in the help of commands; `option` is its name where that is not the field's, and "" where
    it has none. `limits` are pydantic's: gt, ge, lt, le.
    """
    extra: dict[str, Any] = {"panel": panel, "option": option}
    if callable(default):
        return pydantic.Field(
            default_factory=default, description=description, json_schema_extra=extra, **limits
        )
    return pydantic.Field(default=default, description=description, json_schema_extra=extra, **limits)


def _explain(section: type[pydantic.BaseModel], item: dict[str, Any]) -> str:
    """One problem found by pydantic, in words: the dotted key, what is wrong, the nearest right key."""
    location = tuple(str(part) for part in item["loc"])
    dotted = ".".join(location)
    if item["type"] != "extra_forbidden":
        value = item.get("input")
        told = item["type"] == "missing" or isinstance(value, Mapping | pydantic.BaseModel)
        shown = "" if told else f" (it is {value!r})"
        where = f"{dotted}: " if dotted else ""
        return f"{where}{item['msg'].removeprefix('Value error, ')}{shown}"
    known = _fields_at(section, location[:-1])
    close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(known))}"
    return f"unknown key {dotted!r}; {hint}"


def _fields_at(section: type[pydantic.BaseModel], path: tuple[str, ...]) -> list[str]:
    """The field names of the section that a dotted path leads to."""
    current: Any = section
    for part in path:
        if part.isdigit():  # a place in a list
            continue
        annotation = current.model_fields[part].annotation if part in current.model_fields else None
        options = [annotation, *getattr(annotation, "__args__", ())]
        nested = [
            option
            for option in options
            if isinstance(option, type) and issubclass(option, pydantic.BaseModel)
        ]
        if not nested:
            return []
        current = nested[0]
    return list(current.model_fields)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; raises ConfigError where the file is missing, broken or not a mapping."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file") from error
    except DuplicateKey as error:
        raise ConfigError(f"{path}: {error}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: this is not a YAML file: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: this file should hold a mapping (key: value), and does not")
    return values


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Apply `a.b=c` overrides (values read as YAML) to a nested mapping, returning a new one."""
    result: dict[str, Any] = {
        key: dict(value) if isinstance(value, dict) else value for key, value in values.items()
    }
    for override in overrides:
        dotted, separator, text = override.partition("=")
        if not separator or not dotted:
            raise ConfigError(
                f"--set {override!r}: write it as NAME.key=value, for example pretrain.steps=500"
            )
        *parents, key = dotted.strip().split(".")
        target = result
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {override!r}: {parent!r} is a value, not a section")
        try:
            target[key] = parse_yaml(text)
        except (DuplicateKey, yaml.YAMLError) as error:
            raise ConfigError(f"--set {override!r}: this is not YAML: {error}") from error
    return result


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with changes to some of them."""
    merged = dict(base)
    for key, value in changes.items():
        known = merged.get(key)
        merged[key] = merge(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return merged
