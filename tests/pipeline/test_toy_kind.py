"""A kind of stage and an objective of another package: one module (`tests/toy_kind.py`), and one line here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import toy_kind
import yaml

from mm_rec.pipeline.recipe import Recipe, recipe_of
from mm_rec.pipeline.registry import find_kind, register
from mm_rec.pipeline.run import run_recipe
from mm_rec.pipeline.verify_resume import verify_resume
from mm_rec.runs.metrics import Outcome
from mm_rec.runs.metrics_log import read_metrics

register(toy_kind.KIND)


def toy_recipe(values: dict[str, Any]) -> Recipe:
    return recipe_of({"stages": [{"kind": "toy", "name": "mine", **values, "focus": 2, "log_every": 1}]})


def test_the_kind_runs_in_a_recipe_and_its_metrics_are_in_log_and_picture(
    recipe_values: dict[str, Any], listener: Any, tmp_path: Path
) -> None:
    assert find_kind("toy") is toy_kind.KIND
    run = tmp_path / "run" / "mine"
    ended = run_recipe(toy_recipe(recipe_values), tmp_path / "run", listener)
    assert (ended.outcome, ended.step) == (Outcome.FINISHED, 6)
    records = [record for record in read_metrics(run / "metrics.jsonl") if record["kind"] == "train"]
    assert all(record["surprise"] > record["loss"] > 0 <= record["sure"] for record in records)
    graph = json.loads((run / "training_graph.json").read_text())
    assert len(graph["train"]["surprise"]) == len(graph["train"]["sure"]) == 6
    weights = (run / "final" / "model.safetensors").read_bytes()
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    shutil.rmtree(newest)
    assert run_recipe(toy_recipe(recipe_values), tmp_path / "run", listener).step == 6
    assert (run / "final" / "model.safetensors").read_bytes() == weights


def test_a_killed_run_of_the_kind_loses_nothing(
    recipe_values: dict[str, Any], listener: Any, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(toy_recipe(recipe_values).values()))
    verify_resume(recipe, listener, steps=4, kills=1)
    assert "identical after 1 kills" in listener.text
