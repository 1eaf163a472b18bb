"""Recipes: stages by kind and name, what was given, the former form, and options made from fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from stage_recipes import adapting, one_stage, pretraining

from mm_rec.cli.main import run as command
from mm_rec.cli.options import options_of
from mm_rec.errors import ConfigError
from mm_rec.pipeline.kinds import Artifact, Artifacts
from mm_rec.pipeline.recipe import read_recipe, read_run, recipe_of, write_recipe
from mm_rec.pipeline.registry import all_kinds
from mm_rec.pipeline.run import outputs, run_recipe, run_stage
from mm_rec.runs.directory import RECIPE_FILE
from mm_rec.runs.metrics import Outcome

FORMER = {
    "name": "old",
    "seed": 7,
    "data": {"sources": ["a.txt"], "stages": [{"until": 1.0, "weights": {"a": 1}}]},
    "tokenizer": {"vocab_size": 600},
    "model": {"size": "mini"},
    "pretrain": {"steps": 5, "learning_rate": 0.002},
    "instruct": {"data": ["b.jsonl"], "steps": 3},
    "sft": None,
    "lora": {"start_from": "x", "data": ["c.jsonl"], "rank": 4, "start_adapter": None, "epochs": 2},
}


def test_a_recipe_of_the_former_form_is_refused_with_its_new_form(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(FORMER))
    with pytest.raises(ConfigError, match="a list of stages now") as caught:
        read_recipe(path)
    shown = yaml.safe_load(str(caught.value).split("\n\n", 1)[1])
    assert [(one["kind"], one["name"]) for one in shown["stages"]] == [
        ("pretrain", "pretrain"), ("sft", "instruct"), ("lora", "lora"),
    ]  # fmt: skip
    path.write_text(yaml.safe_dump(shown))
    recipe = read_recipe(path)
    assert (recipe.name, recipe.seed) == ("old", 7)
    pretrain, instruct, lora = (stage.section for stage in recipe.stages)
    assert (pretrain.steps, pretrain.learning_rate, pretrain.model.size) == (5, 0.002, "mini")
    assert pretrain.data.phases[0].weights == {"a": 1}
    assert (instruct.steps, lora.adapter.rank, lora.epochs) == (3, 4, 2)


def test_a_run_that_keeps_a_recipe_of_the_former_form_still_opens(tmp_path: Path) -> None:
    (tmp_path / RECIPE_FILE).write_text(yaml.safe_dump(FORMER))
    assert [stage.name for stage in read_run(tmp_path).stages] == ["pretrain", "instruct", "lora"]


def test_what_was_given_is_kept_through_copies_and_files(tmp_path: Path) -> None:
    recipe = adapting({"start_from": "m", "rank": 8, "steps": 3})
    section = recipe.stages[0].section
    given = {"start_from", "adapter.rank", "steps"}
    assert set(section.given()) == given
    resolved = section.replace(seq_len=64, batch_size=2, adapter=section.adapter.replace(start_from="a"))
    assert set(resolved.given()) == given and resolved.seq_len == 64
    write_recipe(recipe.with_section("lora", resolved), tmp_path, {"seq_len": "tokens; for width 128"})
    text = (tmp_path / RECIPE_FILE).read_text()
    assert "  seq_len: 64  # tokens; for width 128\n" in text
    read = read_run(tmp_path).stages[0].section
    assert read == resolved and set(read.given()) == given and read.adapter.model_fields_set == {"rank"}


def test_a_lora_stage_goes_on_with_the_adapter_of_another(tmp_path: Path) -> None:
    """Its rank is a default, and nobody gave it: it is that of the adapter."""
    made = Artifacts()
    made.add("first", {"adapter": Artifact("adapter", Path("runs/first"), "")})
    stage = adapting({"start_from": "m", "start_adapter": "first"}).stages[0]
    section = stage.kind.connect(stage.section, made)
    assert section.adapter.start_from == "runs/first" and "rank" not in section.adapter.model_fields_set


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "no stage"),
        ([{"name": "a"}], "stage 1 has no kind"),
        ([{"kind": "pretrian"}], "did you mean 'pretrain'"),
        ([{"kind": "pretrain"}, {"kind": "pretrain"}], "two stages are called 'pretrain'"),
        ([{"kind": "pretrain", "learnig_rate": 1}], "stage 1 .pretrain.*did you mean 'learning_rate'"),
        ([{"kind": "sft", "name": "../x"}], "cannot be the name of a run"),
    ],
)
def test_bad_recipes(stages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe_of({"stages": stages})


def test_set_addresses_a_stage_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("stages: [{kind: pretrain, name: tiny}, {kind: pretrain, name: mini, steps: 3}]")
    recipe = read_recipe(path, ["mini.model.size=mini", "tiny.steps=9", "seed=5"])
    assert [stage.section.model.size for stage in recipe.stages] == ["tiny", "mini"]
    assert [stage.section.steps for stage in recipe.stages] == [9, 3] and recipe.seed == 5
    with pytest.raises(ConfigError, match="there is no stage 'tini'; did you mean 'tiny'"):
        read_recipe(path, ["tini.steps=9"])


def test_every_field_of_a_section_has_an_option_in_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = all_kinds()
    common = {one.parameter.name for one in options_of(kinds["sft"].section)}
    assert common == {one.parameter.name for one in options_of(kinds["lora"].section)}
    for name in ("pretrain", "sft", "lora"):
        flags = set()
        for one in options_of(kinds[name].section):
            (detail,) = one.parameter.annotation.__metadata__
            assert detail.help, f"{one.path} has no description"
            names = set(detail.default.split("/"))  # where typer keeps what follows Option( in an annotation
            assert not flags & names, f"{names} stand twice"
            flags |= names
        assert {"--learning-rate", "--rank", "--seed", "--steps"} <= flags


def test_resume_refuses_what_it_would_ignore(
    text_file: Path, recipe_values: dict[str, Any], listener: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    run_stage(pretraining(recipe_values), tmp_path / "runs" / "mine", listener)
    for arguments, name in (
        (["--steps", "9"], "--steps"), ([str(text_file)], "FILES"), (["--set", "pretrain.steps=9"], "--set"),
        (["--name", "x"], "--name"), (["--no-compile"], "--compile"),
    ):  # fmt: skip
        assert command(["pretrain", "--resume", "runs/mine", *arguments]) == 2
        shown = " ".join(capsys.readouterr().err.split())
        assert f"would ignore {name}" in shown, shown
    assert command(["sft", "--resume", "runs/mine"]) == 2
    assert "mmrec pretrain --resume" in " ".join(capsys.readouterr().err.split())


def test_stages_of_every_kind_hand_on_what_they_make(
    text_file: Path, recipe_values: dict[str, Any], listener: Any, tmp_path: Path
) -> None:
    """Clean text, a tokenizer, two models of one recipe, and an evaluation of the first by its stage's name."""
    pytest.importorskip("rensa", reason="cleaning needs mm-rec[data]")
    small = {key: value for key, value in recipe_values.items() if key not in ("data", "tokenizer")}
    whole = recipe_of({"stages": [
        {"kind": "clean", "sources": [str(text_file)], "processes": 1,
         "corpus": {"cleaning": {"quality": False}, "dedup": {"near": False}}},
        {"kind": "tokenizer", "vocab_size": 500},
        {"kind": "pretrain", "name": "tiny", **small},
        {"kind": "pretrain", "name": "again", **small, "model": {"start_from": "tiny"}, "steps": 2},
        {"kind": "evaluate", "model": "tiny", "text": [str(text_file)], "context": [32],
         "prompts": ["One day"], "max_new_tokens": 4},
    ]})  # fmt: skip
    folder = tmp_path / "all"
    ended = run_recipe(whole, folder, listener)
    assert (ended.outcome, ended.run) == (Outcome.FINISHED, folder / "evaluate")
    made = {stage.name: outputs(folder / stage.name) for stage in whole.stages}
    assert [list(one) for one in made.values()] == [
        ["corpus", "report"], ["tokenizer"], ["model"], ["model"], ["report"],
    ]  # fmt: skip
    assert all(len(artifact.sha256) == 64 for one in made.values() for artifact in one.values())
    assert read_run(folder / "tiny").stages[0].section.data.sources[0].path == str(
        made["clean"]["corpus"].path
    )
    lineage = json.loads((folder / "again" / "lineage.json").read_text())
    assert lineage["inputs"]["model"] == str(folder / "tiny" / "final")
    assert "bits" in (folder / "evaluate" / "evaluation.md").read_text()
    again = run_recipe(whole, folder, listener)
    assert again.outcome == Outcome.FINISHED and f"{folder / 'clean'} is finished" in listener.text
    assert {stage.name: outputs(folder / stage.name) for stage in whole.stages} == made


def test_a_stage_that_lacks_its_input_is_named_before_the_first_runs(tmp_path: Path, listener: Any) -> None:
    with pytest.raises(ConfigError, match="evaluate: no model to evaluate"):
        run_recipe(one_stage("evaluate", {}), tmp_path / "run", listener)
    assert not (tmp_path / "run").exists()


def test_an_adapter_is_a_setting_of_pre_training_too(
    recipe_values: dict[str, Any], listener: Any, tmp_path: Path
) -> None:
    run_stage(pretraining(recipe_values), tmp_path / "base", listener)
    base = tmp_path / "base"
    more = {**recipe_values, "model": {"start_from": str(base)}, "tokenizer": {}, "adapter": {"rank": 2}}
    ended = run_stage(pretraining(more), tmp_path / "adapter", listener)
    assert ended.outcome == Outcome.FINISHED and list(outputs(tmp_path / "adapter")) == ["adapter"]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    section = read_run(tmp_path / "adapter").stages[0].section
    assert (section.learning_rate, section.optimizer) == (2e-4, "adamw")
    with pytest.raises(ConfigError, match="an adapter needs a model"):
        run_stage(pretraining({**recipe_values, "adapter": {}}), tmp_path / "none", listener)


def test_overrides_do_not_hide_two_stages_of_one_name_and_bad_shapes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    for text, message in (
        ("stages: [{kind: sft}, {kind: sft}]", "two stages are called 'sft'"),
        ("stages: [pretrain]", "stages.0: .*dictionary"),
        ("stages: pretrain", "stages: .*list"),
        ("data: a.txt", "data: this is not a mapping"),
        ("lora: [1]", "lora: this is not a mapping"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_recipe(path, ["sft.steps=3"])


def test_a_run_of_one_command_that_keeps_a_former_recipe_with_more_sections_goes_on(tmp_path: Path) -> None:
    (tmp_path / RECIPE_FILE).write_text(yaml.safe_dump(FORMER))
    (tmp_path / "metrics.jsonl").write_text("")
    assert [stage.name for stage in read_run(tmp_path, "lora").stages] == ["lora"]
    assert [stage.name for stage in read_run(tmp_path, "sft").stages] == ["instruct"]


def test_the_seed_of_a_recipe_stays_the_recipes(
    recipe_values: dict[str, Any], listener: Any, tmp_path: Path
) -> None:
    run_stage(pretraining({**recipe_values, "steps": 2}, seed=7), tmp_path / "run", listener)
    kept = read_run(tmp_path / "run")
    assert (kept.seed, kept.stages[0].section.seed) == (7, None)
    assert read_recipe(tmp_path / "run" / RECIPE_FILE, ["seed=8"]).seed == 8


def test_what_a_stage_lacks_is_known_by_what_those_before_it_make(tmp_path: Path, listener: Any) -> None:
    text = tmp_path / "a.txt"
    text.write_text("A text. " * 50)
    for stages, message in (
        ([{"kind": "clean", "sources": [str(text)]}, {"kind": "sft", "data": [str(text)]}], "sft: no model"),
        (
            [{"kind": "pretrain", "data": {"sources": [str(text)]}, "adapter": {}}],
            "pretrain: an adapter needs",
        ),
        ([{"kind": "pretrain"}], "pretrain: no text"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_recipe(recipe_of({"stages": stages}), tmp_path / "run", listener)
    assert not (tmp_path / "run").exists()
