"""Pre-training from a recipe: what it leaves, how it goes on, what it derives, what it refuses."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_recipes import pretraining
from transformers import AutoModelForCausalLM, AutoTokenizer

from mm_rec.config import merge
from mm_rec.errors import CheckpointError, ConfigError, DataError, TokenizerError
from mm_rec.models.loading import load_model, load_model_and_tokenizer, load_portable, save_portable
from mm_rec.pipeline.recipe import read_run
from mm_rec.pipeline.run import run_stage


def test_a_run_leaves_everything_that_was_promised(
    recipe_values: dict[str, Any], listener: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    outcome = run_stage(pretraining(recipe_values), run, listener)
    assert (outcome.outcome, outcome.step) == ("finished", 6)
    for name in (
        "recipe.yaml", "lineage.json", "metrics.jsonl", "training_log.json", "training_parameters.json",
        "training_graph.json", "training_graph.png", "README.md", "best/config.json", "final/model.safetensors",
        "tokenizer/tokenizer.json", "data/split.json", "checkpoints/latest",
    ):  # fmt: skip
        assert (run / name).stat().st_size > 0, name
    assert (run / "training_graph.png").read_bytes().startswith(b"\x89PNG")
    log = json.loads((run / "training_log.json").read_text())
    assert log["total_steps"] == 6 and log["tokens"] == 6 * 4 * 32 and log["loss"] < log["first_loss"]
    resolved = read_run(run).stages[0].section
    assert resolved.steps == 6 and resolved.learning_rate and resolved.threads and resolved.warmup_steps == 0
    lineage = json.loads((run / "lineage.json").read_text())
    assert (
        len(lineage["inputs"]["train_corpus"]) == 64
        and lineage["machine"]["threads"] == torch.get_num_threads()
    )
    assert "expect a model that knows little" in listener.text
    model = AutoModelForCausalLM.from_pretrained(run / "final")
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    assert model.config.eos_token_id == tokenizer.eos_token_id and tokenizer.chat_template


@pytest.mark.parametrize(
    "settings",
    [{}, {"segment_len": 12}, {"seq_len_start": 8, "state_passing": 0.7, "segment_len": 12}],
    ids=str,
)
def test_a_stopped_run_goes_on_and_equals_an_unbroken_one(
    recipe_values: dict[str, Any], listener: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    recipe_values.update(settings)
    recipe, whole, broken = pretraining(recipe_values), tmp_path / "whole", tmp_path / "broken"
    run_stage(recipe, whole, listener)

    def interrupt(moment: str, step: int) -> None:
        if (moment, step) == ("step", 2):
            os.kill(os.getpid(), 2)

    assert run_stage(recipe, broken, listener, interrupt).outcome == "stopped"
    assert not (broken / "final").exists()
    assert run_stage(read_run(broken), broken, listener).outcome == "finished"
    assert "continuing" in listener.text and "at step 3 of 6" in listener.text
    one, other = (load_model(run / "final") for run in (whole, broken))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_llama_and_continuing_a_model_on_other_text(
    recipe_values: dict[str, Any], listener: Any, tmp_path: Path
) -> None:
    changes = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 1}
    base = {**recipe_values, "model": {"size": "llama_tiny", "changes": changes}}
    run_stage(pretraining(base), tmp_path / "first", listener)
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(f"A note on subject {i}, which is the {i}th." for i in range(200)))
    onward = {
        "data": {"sources": [str(other)]},
        "model": {"start_from": str(tmp_path / "first")},
        "steps": 2,
        "seq_len": 32,
        "batch_size": 4,
    }
    outcome = run_stage(pretraining(onward), tmp_path / "second", listener)
    assert outcome.outcome == "finished" and "a fifth for a model that continues" in listener.text
    first, tokenizer = load_model_and_tokenizer(tmp_path / "first")
    second, same = load_model_and_tokenizer(tmp_path / "second")
    assert tokenizer.get_vocab() == same.get_vocab()
    moved = (first.model.embed_tokens.weight - second.model.embed_tokens.weight).abs().max()
    assert 0 < moved < 0.1


def test_sizes_follow_from_model_data_and_machine(
    recipe_values: dict[str, Any], listener: Any, tmp_path: Path
) -> None:
    """`mmrec pretrain FILE` needs nothing else; with --minutes the machine's speed decides the steps."""
    del recipe_values["tokenizer"]  # 5,000 pieces are more than this text can fill, and nobody asked for them
    for name in ("steps", "seq_len", "batch_size", "validate_every", "precision"):
        del recipe_values[name]
    recipe_values["minutes"] = 0.02
    run_stage(pretraining(recipe_values), tmp_path / "run", listener)
    resolved = read_run(tmp_path / "run").stages[0].section
    assert resolved.seq_len and resolved.seq_len <= 512 and resolved.batch_size and resolved.steps
    assert "tokens/s just measured" in listener.text and "learning_rate = " in listener.text
    assert "at most a tenth of the time" in listener.text and " seconds" in listener.text


def test_the_portable_file_round_trips(recipe_values: dict[str, Any], listener: Any, tmp_path: Path) -> None:
    run_stage(pretraining(recipe_values), tmp_path / "run", listener)
    model, tokenizer = load_model_and_tokenizer(tmp_path / "run")
    save_portable(model, tokenizer, tmp_path / "final_checkpoint.pt")
    loaded, same = load_portable(tmp_path / "final_checkpoint.pt")
    ids = torch.tensor([tokenizer.encode("One day a child")])
    assert torch.equal(model(ids).logits, loaded(ids).logits)
    assert same.encode("bir gün") == tokenizer.encode("bir gün")
    content = torch.load(tmp_path / "final_checkpoint.pt", weights_only=True)
    assert set(content) == {"config", "model", "tokenizer"}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": {"sources": []}}, ConfigError, "name files or folders"),
        ({"data": {"sources": ["/no/such/file.txt"]}}, DataError, "no such file"),
        ({"data": {"text_field": "content"}}, DataError, r"stories\.jsonl:1: .*content"),
        ({"tokenizer": {"vocab_size": 90_000}}, TokenizerError, "larger than this text can fill"),
        ({"seq_len": 90_000}, DataError, "the corpus has"),
        ({"batch_size": 2_000_000}, ConfigError, "GB of memory"),
        ({"segment_len": 8, "neftune_alpha": 5.0}, ConfigError, "noise .* leave --segment-len out"),
        (
            {"segment_len": 8, "model": {"size": "llama_tiny"}},
            ConfigError,
            "no state of constant size",
        ),
        ({"model": {"size": "huge"}}, ConfigError, "choose one of tiny"),
        ({"model": {"start_from": "/no/model"}}, CheckpointError, "no model here"),
        ({"steps": 5, "warmup_steps": -1}, ConfigError, "warmup_steps"),
        ({"learnig_rate": 1}, ConfigError, "did you mean 'learning_rate'"),
        ({"device": "cuda:7"}, ConfigError, "no GPU"),
    ],
)
def test_bad_input_is_found_before_training(
    changes: dict[str, dict[str, Any]], error: type[Exception], message: str,
    recipe_values: dict[str, Any], listener: Any, tmp_path: Path,
) -> None:  # fmt: skip
    values = merge(recipe_values, changes)
    with pytest.raises(error, match=message):
        run_stage(pretraining(values), tmp_path / "run", listener)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "run" / "recipe.yaml").exists()  # the same name can be used again


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(
    recipe_values: dict[str, Any], listener: Any, tmp_path: Path
) -> None:
    run_stage(pretraining(recipe_values), tmp_path / "small", listener)
    larger = {**recipe_values, "tokenizer": {"vocab_size": 900}}
    run_stage(pretraining(larger), tmp_path / "large", listener)
    mixed = {
        **recipe_values,
        "tokenizer": {"path": str(tmp_path / "large" / "tokenizer")},
        "model": {"start_from": str(tmp_path / "small")},
    }
    with pytest.raises(TokenizerError, match="600"):
        run_stage(pretraining(mixed), tmp_path / "mixed", listener)
    other = {**recipe_values, "data": {"prepared": str(tmp_path / "small" / "data")}}
    other["tokenizer"] = {"path": str(tmp_path / "large" / "tokenizer")}
    with pytest.raises(TokenizerError, match="was made with tokenizer"):
        run_stage(pretraining(other), tmp_path / "other", listener)


def test_a_full_disk_is_said_and_leaves_nothing_half_written(
    recipe_values: dict[str, Any], listener: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run_stage(pretraining(recipe_values), run, listener)
    before = sorted(folder.name for folder in (run / "checkpoints").iterdir())

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mm_rec.training.checkpoint.save_file", full)
    values = {**recipe_values, "steps": 9}
    with pytest.raises(DataError, match="disk is full"):
        run_stage(pretraining(values), run, listener)
    assert sorted(folder.name for folder in (run / "checkpoints").iterdir()) == before
