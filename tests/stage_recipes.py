"""Recipes of one stage for the tests, from the settings of that stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from mm_rec.pipeline.recipe import Recipe, recipe_of
from mm_rec.training.section import AdapterSection


def one_stage(kind: str, settings: Mapping[str, Any], **top: Any) -> Recipe:
    """A recipe with one stage of a kind."""
    return recipe_of({**top, "stages": [{"kind": kind, **settings}]})


def pretraining(settings: Mapping[str, Any], **top: Any) -> Recipe:
    """A recipe that pre-trains."""
    return one_stage("pretrain", settings, **top)


def recipe_text(recipe: Recipe) -> str:
    """The YAML text of a recipe."""
    return yaml.safe_dump(recipe.values(), sort_keys=False, allow_unicode=True)


def adapting(settings: Mapping[str, Any], **top: Any) -> Recipe:
    """A recipe that trains an adapter; the adapter's own settings may stand among the others."""
    own = AdapterSection.model_fields.keys() - {"start_from"}
    adapter = {name: value for name, value in settings.items() if name in own}
    if "start_adapter" in settings:
        adapter["start_from"] = settings["start_adapter"]
    rest = {name: value for name, value in settings.items() if name not in (*own, "start_adapter")}
    return one_stage("lora", {**rest, "adapter": adapter}, **top)
