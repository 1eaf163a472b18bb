"""Options of a command, made from the fields of a section: one for each, so that none is missing in any command."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from mm_rec.config import Section

_SCALARS = (int, float, str, bool)


@dataclass(frozen=True, slots=True)
class SectionOption:
    """The option of one field: its path in the section, and its parameter as typer takes it."""

    path: tuple[str, ...]
    parameter: inspect.Parameter


def options_of(section: type[Section], path: tuple[str, ...] = ()) -> Iterator[SectionOption]:
    """An option for every field that a command line can give, those of nested sections among them."""
    for name, field in section.model_fields.items():
        inner = _without_none(field.annotation)
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from options_of(inner, (*path, name))
        elif (kind := _parameter_type(field)) is not None:
            yield SectionOption((*path, name), _parameter((*path, name), field, kind))


def given_settings(options: Mapping[str, SectionOption], values: Mapping[str, Any]) -> dict[str, Any]:
    """The nested values of a section that were given as options."""
    settings: dict[str, Any] = {}
    for name, option in options.items():
        if values[name] is None:
            continue
        *parents, key = option.path
        place = settings
        for parent in parents:
            place = place.setdefault(parent, {})
        place[key] = values[name]
    return settings


def _parameter(path: tuple[str, ...], field: FieldInfo, kind: Any) -> inspect.Parameter:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    flag = str(extra.get("option") or "--" + path[-1].replace("_", "-"))
    flags = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
    panel = extra.get("panel")
    option = typer.Option(
        flags,
        help=_help(field),
        rich_help_panel=None if panel is None else str(panel),
        show_default=False,
        **_limits(field, kind),
    )
    return inspect.Parameter(
        "_".join(path),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _limits(field: FieldInfo, kind: Any) -> dict[str, Any]:
    """The least and the most that a number may be; the section itself refuses the bound where it is excluded."""
    if kind not in (int, float):
        return {}
    found = {
        end: getattr(one, name)
        for one in field.metadata
        for end, name in (("min", "ge"), ("min", "gt"), ("max", "le"), ("max", "lt"))
        if getattr(one, name, None) is not None
    }
    return {end: kind(value) for end, value in found.items()}


def _help(field: FieldInfo) -> str:
    """The field's description, with its default where it has one that the description does not tell."""
    text, default = field.description or "", field.default
    if "default:" in text or not isinstance(default, _SCALARS) or default == "":
        return text
    shown = ("on" if default else "off") if isinstance(default, bool) else str(default).replace("\n", "\\n")
    return f"{text.removesuffix('.')} (default: {shown})."


def _parameter_type(field: FieldInfo) -> Any:
    """The type of a field's option; None where a command line cannot give it."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and extra.get("option") == "":
        return None
    if any(isinstance(one, BeforeValidator) for one in field.metadata):
        return str  # it reads what people write
    inner = _without_none(field.annotation)
    if get_origin(inner) is Literal:
        return str
    if get_origin(inner) is list and get_args(inner) == (str,):
        return list[str]
    return inner if inner in _SCALARS else None


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        left = [one for one in get_args(annotation) if one is not NoneType]
        annotation = left[0] if len(left) == 1 else annotation
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
