"""Every number of every option, recipe and settings file is finite and in its range, or refused by name."""

from __future__ import annotations

import importlib
import pkgutil
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from annotated_types import Ge, Gt, Interval
from stage_recipes import pretraining

import mm_rec
from mm_rec.cleaning.rules import Rule, RuleLimits
from mm_rec.cli.main import app
from mm_rec.config import Section
from mm_rec.errors import ConfigError
from mm_rec.models.loading import parse_adapter
from mm_rec.pipeline.recipe import read_recipe
from mm_rec.scripts.evaluate_trained_model import app as evaluation_script
from mm_rec.scripts.pretrain import app as pretraining_script
from mm_rec.sources.download import parse_size
from mm_rec.stories.wordlists.examples import parse_shares
from mm_rec.terminal import checked_command, run_app

APPS = {"mmrec": app, "pretrain.py": pretraining_script, "evaluate_trained_model.py": evaluation_script}
HUGE = "9" * 30


def numbers(annotation: Any) -> set[type]:
    """The kinds of numbers that an annotation lets through."""
    if annotation in (int, float):
        return {annotation}
    return {kind for part in typing.get_args(annotation) for kind in numbers(part)}


def options(command: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All options that are numbers, with the command that they belong to."""
    for parameter in command.params:
        if numbers(parameter.type_descriptor.annotation):
            yield names, parameter
    for name in command.list_commands(None) if hasattr(command, "list_commands") else ():
        yield from options(command.get_command(None, name), *names, name)


COMMANDS = {program: checked_command(one) for program, one in APPS.items()}
OPTIONS = [
    (program, names, parameter)
    for program, command in COMMANDS.items()
    for names, parameter in options(command)
]


def test_there_are_options_to_look_at() -> None:
    assert len(OPTIONS) > 90 and {program for program, _, _ in OPTIONS} == set(APPS)


@pytest.mark.parametrize(
    ("program", "names", "option"), OPTIONS, ids=[f"{' '.join((p, *n))} {o.opts[0]}" for p, n, o in OPTIONS]
)
def test_an_option_refuses_what_is_no_finite_number_or_too_small(
    program: str, names: tuple[str, ...], option: Any
) -> None:
    assert option.min is not None, "an option that is a number says its smallest value (min=)"
    wrong = ["nan", "inf", "-inf", "1e300", HUGE * 20, f"{option.min - 1}"]
    if option.max is not None:
        wrong.append(f"{option.max + 1}")
    if numbers(option.type_descriptor.annotation) == {int}:
        wrong.append(HUGE)
    for value in wrong:
        with pytest.raises(typer.BadParameter) as refused:
            COMMANDS[program].main([*names, f"{option.opts[0]}={value}"], standalone_mode=False)
        assert refused.value.param.name == option.name, value  # type: ignore[union-attr]


def sections() -> list[type[Section]]:
    """All settings of the package."""
    for module in pkgutil.walk_packages(mm_rec.__path__, "mm_rec."):
        importlib.import_module(module.name)
    found, waiting = [], [Section]
    while waiting:
        below = waiting.pop().__subclasses__()
        found += [one for one in below if one.__module__.startswith("mm_rec.")]
        waiting += below
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("section", sections(), ids=lambda one: f"{one.__module__}.{one.__name__}")
def test_a_setting_refuses_what_is_no_finite_number_or_too_small(section: type[Section]) -> None:
    named = {"languages": ["tr"], "hub": "a/b", "base_url": "http://127.0.0.1/v1", "weights": {"a": 1.0}}
    samples: dict[Any, Any] = {str: "words", int: 4, float: 0.5}
    needed = {
        name: named.get(name, samples.get(field.annotation))
        for name, field in section.model_fields.items()
        if field.is_required()
    }
    for name, field in section.model_fields.items():
        if not (numbers(field.annotation) or "Any" in str(field.annotation)):
            continue
        for value in (
            float("nan"),
            float("inf"),
            float("-inf"),
            1e300,
            "1e300",
            "inf",
            "nan",
            "1e999",
            10**30,
        ):
            if not numbers(field.annotation) and isinstance(value, str):
                continue
            for shape in (value, [value], {"1": value}):
                with pytest.raises(ConfigError, match=name):
                    section.read({**needed, name: shape})
        plain = [kind for kind in (int, float) if field.annotation in (kind, kind | None)]
        if plain and section not in (
            RuleLimits,
            Rule,
        ):  # measures of a text, whose limits are what a person says
            bounds = [one for one in field.metadata if isinstance(one, Ge | Gt | Interval)]
            assert bounds, f"{section.__name__}.{name} says its smallest value (ge= or gt=)"
            least = next(
                one.ge if one.ge is not None else one.gt  # type: ignore[union-attr]
                for one in [bound if isinstance(bound, Interval) else _interval(bound) for bound in bounds]
            )
            with pytest.raises(ConfigError, match=name):
                section.read({**needed, name: least - 1})  # type: ignore[operator]


def _interval(bound: Ge | Gt) -> Interval:
    return Interval(ge=bound.ge) if isinstance(bound, Ge) else Interval(gt=bound.gt)


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e400", "1" + "0" * 30])
@pytest.mark.parametrize(
    "recipe",
    [
        "kind: pretrain, data: {{sources: [{{path: a.txt, name: a, weight: {value}}}]}}",
        "kind: pretrain, data: {{phases: [{{until: 1.0, weights: {{a: {value}}}}}]}}",
        "kind: pretrain, model: {{changes: {{initializer_range: {value}}}}}",
        "kind: pretrain, weight_decay: {value}",
        "kind: pretrain, tokens: {value}",
        "kind: lora, text_slices: {{chunk_length: {value}}}",
    ],
)
def test_a_recipe_names_the_number(tmp_path: Path, recipe: str, value: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"stages: [{{{recipe.format(value=value)}}}]")
    if value == "1e400" and "changes" in recipe:
        return  # text in YAML, where a number has a point; the model's configuration refuses it
    key = re.findall(r"(\w+): \{value\}", recipe)[0]
    with pytest.raises(ConfigError, match=key):
        read_recipe(path)


def test_the_programs_check_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app, "mmrec", ["pretrain", "a.txt", "--epochs", "inf"]) == 2
    assert "Invalid value for '--epochs': inf is not a finite number" in capsys.readouterr().err


def test_numbers_within_text_are_finite_too() -> None:
    for text in (f"{HUGE * 20}GB", f"{HUGE}TB", "infGB"):
        with pytest.raises(ConfigError, match="--limit"):
            parse_size(text)
    for text in ("a=inf", "a=nan", "a=1e999"):
        with pytest.raises(ConfigError, match="--adapter"):
            parse_adapter(text)
    for text in (f"3={HUGE * 20}", "3=50,4=60", "3=0", "3=10,4=20", "3=inf"):
        with pytest.raises(ConfigError, match="--shares"):
            parse_shares(text)
    for text in ("infB", f"{HUGE * 20}B", "-5M", "0k", "1.2.3M"):
        with pytest.raises(ConfigError, match="tokens"):
            pretraining({"tokens": text})


@pytest.mark.parametrize(
    "words", [("generate", "MODEL", "--prompt"), ("evaluate", "MODEL", "--prompt"), ("sft",)]
)
def test_an_argument_that_is_not_utf8(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    argument = b"\xfe\xfd".decode(errors="surrogateescape")  # as Python hands it over
    assert run_app(app, "mmrec", [*words, argument]) == 2
    said = capsys.readouterr().err
    assert "is not UTF-8. Set the terminal to UTF-8" in said and "\\udcfe" in said
    assert (words[-1] if len(words) > 1 else "argument 2") in said
