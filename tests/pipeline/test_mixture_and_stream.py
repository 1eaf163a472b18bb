"""Pre-training on several sources and on streams: what is said and left, how it goes on, what is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from stage_recipes import pretraining, recipe_text

from mm_rec.cli.main import run as run_command
from mm_rec.errors import CheckpointError, ConfigError, DataError, MismatchError
from mm_rec.models.loading import load_model
from mm_rec.pipeline.recipe import read_run
from mm_rec.pipeline.run import run_stage
from mm_rec.pipeline.verify_resume import compare_runs, verify_resume
from mm_rec.runs.files import hash_file, read_json, write_json
from mm_rec.runs.metrics_log import read_metrics
from mm_rec.stories.generator import stories


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second, smaller source: 60 documents of another kind."""
    path = tmp_path_factory.mktemp("notes") / "notes.jsonl"
    rows = ({"text": f"note {story.text[:80]}"} for story in stories(seed=9, count=60))
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def mixed_values(recipe_values: dict[str, Any], text_file: Path, notes: Path) -> dict[str, Any]:
    """The recipe on two sources, the second from the middle of the run on."""
    data = {
        "sources": [{"path": str(text_file), "weight": 2}, {"path": str(notes)}],
        "temperature": 2,
        "parse_specials": True,
        "phases": [{"until": 0.5, "weights": {"notes": 0}}, {"until": 1.0, "weights": {"notes": 30}}],
    }
    return {**recipe_values, "data": data}


@pytest.fixture
def stream_values(recipe_values: dict[str, Any]) -> dict[str, Any]:
    """The recipe, streamed; the text is read again and again in the six steps."""
    data = {**recipe_values["data"], "streaming": True, "shuffle_rows": 8, "validation_fraction": 0.1}
    return {**recipe_values, "data": data}


def test_a_mixture_is_said_measured_by_source_and_written_down(
    mixed_values: dict[str, Any], listener: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_stage(pretraining(mixed_values), run, listener)
    for name in ("stories", "notes"):
        assert (run / "data" / name / "split.json").is_file()
    assert "phase 2, from 50% of the run on: stories " in listener.text
    assert "notes: " in listener.text and " epochs" in listener.text
    card = (run / "README.md").read_text()
    assert "`stories.jsonl`" in card and "`notes.jsonl`" in card and "% of the rows" in card
    validation = [record for record in read_metrics(run / "metrics.jsonl") if record["kind"] == "validation"]
    line = next(line for line in listener.said if line.startswith("notes: ") and "of the rows" in line)
    share = float(line.split()[1].removesuffix("%")) / 100
    for record in validation:
        expected = share * record["loss/notes"] + (1 - share) * record["loss/stories"]
        assert record["loss"] == pytest.approx(expected, abs=2e-3)
        assert record["loss/notes"] != record["loss/stories"]
    assert "loss/notes" in listener.text
    lineage = read_json(run / "lineage.json")["inputs"]["sources"]
    assert len({lineage[name]["train_corpus"] for name in ("stories", "notes")}) == 2
    resolved = read_run(run)
    data = resolved.stages[0].section.data
    assert [source.weight for source in data.sources] == [2, 1]
    assert data.phases[1].weights == {"notes": 30}
    # The run goes on by its own recipe, and a killed one equals an unbroken one.
    run_stage(resolved, run, listener)
    assert "at step 6 of 6" in listener.text
    verify_resume(run, listener, steps=6, kills=1)
    assert "identical after 1 kills" in listener.text


def test_text_that_is_repeated_often_is_warned_of(
    mixed_values: dict[str, Any], listener: Any, tmp_path: Path
) -> None:
    """And validation files, which are the same for both sources, are measured once."""
    held = tmp_path / "held.jsonl"
    held.write_text('{"text": "One day a child went home."}\n' * 3)
    mixed_values["data"] |= {"validation": [str(held)]}
    mixed_values |= {"steps": 24, "batch_size": 32, "validate_every": 24}
    run_stage(pretraining(mixed_values), tmp_path / "run", listener)
    assert "warning: notes is read" in listener.text and "warning: stories is read" not in listener.text
    assert "validation loss" in listener.text and "loss/" not in listener.text


def test_prepared_folders_can_be_mixed_and_need_their_tokenizer(
    mixed_values: dict[str, Any], recipe_values: dict[str, Any], notes: Path, listener: Any, tmp_path: Path
) -> None:
    run_stage(pretraining(recipe_values), tmp_path / "first", listener)
    sources = [
        {"path": str(tmp_path / "first" / "data"), "name": "stories", "weight": 2},
        {"path": str(notes)},
    ]
    values = {**mixed_values, "data": {"sources": sources}}
    with pytest.raises(ConfigError, match="needs its tokenizer"):
        run_stage(pretraining(values), tmp_path / "run", listener)
    values["tokenizer"] = {"path": str(tmp_path / "first" / "tokenizer")}
    assert run_stage(pretraining(values), tmp_path / "run", listener).outcome == "finished"
    assert not (tmp_path / "run" / "data" / "stories").exists()
    inputs = [read_json(tmp_path / name / "lineage.json")["inputs"] for name in ("first", "run")]
    assert inputs[0]["train_corpus"] == inputs[1]["sources"]["stories"]["train_corpus"]


def test_a_stream_trains_writes_no_training_shards_and_measures_what_it_never_reads(
    stream_values: dict[str, Any], text_file: Path, listener: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    stream_values |= {"steps": None, "tokens": "2k"}
    assert run_stage(pretraining(stream_values), run, listener).step == round(2000 / (4 * 32))
    assert "a budget of 2,000 tokens" in listener.text and "read as a stream" in listener.text
    assert [folder.name for folder in (run / "data" / "text").iterdir()] == ["validation"]
    checkpoint = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    assert load_file(checkpoint / "data.safetensors")["text.buffer"].shape == (8, 32)
    assert "data.safetensors" in read_json(checkpoint / "files.json")
    assert "read as a stream" in (run / "README.md").read_text()
    assert len(read_json(run / "lineage.json")["inputs"]["validation_corpora"]["text"]) == 64
    log = read_json(run / "training_log.json")
    assert log["tokens"] == 16 * 4 * 32 and log["best_validation"]["loss"] > 0


def test_a_stopped_stream_goes_on_and_a_changed_file_is_refused(
    stream_values: dict[str, Any], text_file: Path, listener: Any, tmp_path: Path
) -> None:
    own = tmp_path / "own.jsonl"
    own.write_bytes(text_file.read_bytes())
    stream_values["data"] |= {"sources": [str(own)]}
    recipe, whole, broken = pretraining(stream_values), tmp_path / "whole", tmp_path / "broken"
    run_stage(recipe, whole, listener)

    def interrupt(moment: str, step: int) -> None:
        if (moment, step) == ("step", 2):
            os.kill(os.getpid(), 2)

    assert run_stage(recipe, broken, listener, interrupt).outcome == "stopped"
    lines = own.read_text().splitlines()
    own.write_text("\n".join(['{"text": "another first line"}', *lines[1:]]))
    with pytest.raises(CheckpointError, match=r"own\.jsonl: this file has changed"):
        run_stage(read_run(broken), broken, listener)
    own.write_bytes(text_file.read_bytes())
    assert run_stage(read_run(broken), broken, listener).outcome == "finished"
    one, other = (load_model(run / "final") for run in (whole, broken))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_killed_stream_of_two_sources_is_identical_across_epochs(
    stream_values: dict[str, Any], mixed_values: dict[str, Any], listener: Any, tmp_path: Path
) -> None:
    stream_values["data"] = {**stream_values["data"], **mixed_values["data"], "shuffle_rows": 3}
    stream_values["data"] |= {"phases": [], "parse_specials": False}
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(pretraining(stream_values)))
    verify_resume(path, listener, steps=8, kills=2, keep=tmp_path / "trial")
    assert "identical after 2 kills" in listener.text
    state = read_json(tmp_path / "trial" / "killed" / "checkpoints" / "step-00000008" / "state.json")["data"]
    assert max(stream["reader"]["epoch"] for stream in state["streams"].values()) > 0
    # The proof sees the tokens that wait in the buffer.
    folder = tmp_path / "trial" / "killed" / "checkpoints" / "step-00000008"
    tensors = load_file(folder / "data.safetensors")
    tensors["notes.buffer"][0, 0] += 1
    save_file(tensors, folder / "data.safetensors")
    files = read_json(folder / "files.json")
    write_json(folder / "files.json", {**files, "data.safetensors": hash_file(folder / "data.safetensors")})
    with pytest.raises(MismatchError, match=r"data\.safetensors"):
        compare_runs(tmp_path / "trial" / "unbroken", tmp_path / "trial" / "killed")


@pytest.mark.parametrize(
    ("data", "settings", "error", "message"),
    [
        ({}, {"steps": None}, ConfigError, "--steps, --minutes or --tokens"),
        ({}, {"epochs": 2.0}, ConfigError, "an epoch, is not known"),
        ({"prepared": "x"}, {}, ConfigError, "cannot be streamed"),
        ({"parse_specials": True}, {}, ConfigError, r"data\.parse_specials: a stream reads"),
        ({"validation_fraction": 1e-9}, {}, DataError, "no document is held out"),
        ({"temperature": 3}, {}, ConfigError, "mix sources, and there is one"),
        ({"temperature": 0.5}, {}, ConfigError, "data.temperature"),
        ({}, {"tokens": "many"}, ConfigError, "tokens:"),
        ({"sources": [{"path": "a/"}, {"path": "b/", "wieght": 2}]}, {}, ConfigError, "wieght"),
    ],
)
def test_streams_and_mixtures_that_cannot_be_meant_are_refused_before_training(
    data: dict[str, Any], settings: dict[str, Any], error: type[Exception], message: str,
    stream_values: dict[str, Any], listener: Any, tmp_path: Path,
) -> None:  # fmt: skip
    stream_values["data"] |= data
    stream_values |= settings
    with pytest.raises(error, match=message):
        run_stage(pretraining(stream_values), tmp_path / "run", listener)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_stream_and_token_budget_on_the_command_line(
    text_file: Path, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    small = ["--set", "pretrain.model.changes={num_hidden_layers: 2, hidden_size: 64}", "--vocab-size", "600"]
    arguments = [str(text_file), "--stream", "--tokens", "0.5k", "--seq-len", "32", "--batch-size", "4"]
    assert run_command(["pretrain", *arguments, *small, "--validation", str(notes)]) == 0
    assert read_json(Path("runs/tiny/data/text/validation/corpus.json"))["shards"][0]["documents"] == 60
    assert "step 4/4" in capsys.readouterr().out
    section = read_run(Path("runs/tiny")).stages[0].section
    assert section.data.streaming and section.tokens == 500 and section.steps == 4
