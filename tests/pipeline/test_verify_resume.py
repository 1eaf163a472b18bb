"""`mmrec verify-resume`: it passes where resuming is exact, and fails where it is not."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from stage_recipes import pretraining, recipe_text

from mm_rec.errors import MismatchError
from mm_rec.pipeline.run import run_stage
from mm_rec.pipeline.verify_resume import compare_runs, verify_resume
from mm_rec.runs.files import hash_file, read_json, write_json


@pytest.mark.seldom(
    covers=["mm_rec/data/*", "mm_rec/models/*", "mm_rec/pipeline/*", "mm_rec/runs/*", "mm_rec/training/*"]
)
def test_a_recipe_killed_at_every_kind_of_moment_is_identical(
    recipe_values: dict[str, Any], listener: Any, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(pretraining(recipe_values)))
    verify_resume(path, listener, steps=8, kills=3, keep=tmp_path / "trial")
    assert "identical after 3 kills" in listener.text
    assert all(f"killed: {moment}" in listener.text for moment in ("micro", "checkpoint", "step"))
    # The proof can fail: one changed number anywhere is found.
    folder = next((tmp_path / "trial" / "killed" / "checkpoints").glob("step-00000008"))
    slots = load_file(folder / "optimizer.safetensors")
    name = sorted(slots)[0]
    slots[name].view(-1)[0] += 1e-3
    save_file(slots, folder / "optimizer.safetensors")
    files = read_json(folder / "files.json")
    write_json(
        folder / "files.json", {**files, "optimizer.safetensors": hash_file(folder / "optimizer.safetensors")}
    )
    with pytest.raises(MismatchError, match="optimizer"):
        compare_runs(tmp_path / "trial" / "unbroken", tmp_path / "trial" / "killed")


def test_a_run_can_be_proven_without_reading_its_sources(
    recipe_values: dict[str, Any], listener: Any, tmp_path: Path
) -> None:
    run_stage(pretraining(recipe_values), tmp_path / "run", listener)
    verify_resume(tmp_path / "run", listener, steps=6, kills=1, seed=1)
    assert "identical after 1 kills" in listener.text


@pytest.mark.seldom(
    covers=["mm_rec/data/*", "mm_rec/models/*", "mm_rec/pipeline/*", "mm_rec/runs/*", "mm_rec/training/*"]
)
def test_a_killed_run_of_an_adapter_loses_nothing(
    recipe_values: dict[str, Any], listener: Any, tmp_path: Path
) -> None:
    """Its checkpoints have an adapter's weights in place of a model's: whatever they hold is compared."""
    run_stage(pretraining(recipe_values), tmp_path / "base", listener)
    more = {
        **recipe_values,
        "model": {"start_from": str(tmp_path / "base")},
        "tokenizer": {},
        "adapter": {"rank": 2},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(pretraining(more)))
    trial = tmp_path / "trial"
    verify_resume(path, listener, steps=5, kills=1, keep=trial)
    assert "identical after 1 kills" in listener.text
    folder = sorted((trial / "killed" / "checkpoints").glob("step-*"))[-1]
    weights = folder / "model" / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors[sorted(tensors)[0]].view(-1)[0] += 1e-3
    save_file(tensors, weights)
    files = read_json(folder / "files.json")
    name = weights.relative_to(folder).as_posix()
    write_json(folder / "files.json", {**files, name: hash_file(weights)})
    with pytest.raises(MismatchError, match="adapter_model"):
        compare_runs(trial / "unbroken", trial / "killed")
