"""`mmrec evaluate text`, as a person meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from stage_recipes import one_stage
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typer.testing import CliRunner

from mm_rec.cli.evaluate.app import app
from mm_rec.errors import CheckpointError, ConfigError, DataError
from mm_rec.evaluation.perplexity import evaluate_text
from mm_rec.models.loading import load_model_and_tokenizer, save_model
from mm_rec.pipeline.run import run_stage

PARAGRAPHS = ["Küçük çocuk ırmağın kıyısında oturdu.", "She sang old songs.", "Ne görüyor? Yıldızları."]


@pytest.fixture
def folder(
    build_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> Path:
    save_model(build_model("llama", context_limit=300).float(), tokenizer, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "öykü.txt"
    path.write_text("\n\n".join(PARAGRAPHS), encoding="utf-8")
    return path


def test_special_tokens_in_texts_and_prompts_are_said(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.txt").write_text("Ayşe <|user|> dedi.\n\nBir <|user|> daha.", encoding="utf-8")
    output = run(folder, tmp_path / "odd.txt", "--prompt", "<|pad|>", "--max-new-tokens", 2)
    said = output.replace("\n", " ")
    assert "are read as plain text: <|user|> 2 times" in said and "--prompt: special tokens" in said


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["text", *map(str, arguments)], env={"COLUMNS": "160"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_scores_samples_and_report(folder: Path, text_file: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"body": text}) + "\n" for text in PARAGRAPHS), encoding="utf-8")
    out = tmp_path / "report"
    output = run(
        *(folder, text_file, "--context", 8, "--context", 64, "--context", 8, "--out", out),
        *("--prompt", "Ayşe", "--max-new-tokens", 5, "--temperature", 0),
    )
    assert "Quality: " in output and "Written: " in output and "öykü.txt" in output
    values = json.loads((out / "evaluation.json").read_text("utf-8"))
    assert [text["context"] for text in values["texts"]] == [8, 64]
    assert [sample["prompt"] for sample in values["samples"]] == ["Ayşe"]
    expected = evaluate_text(*load_model_and_tokenizer(folder), PARAGRAPHS, 64)
    assert values["texts"][1]["scores"]["documents"] == 3
    assert values["texts"][1]["scores"]["bits_per_byte"] == pytest.approx(expected.bits_per_byte)
    run(folder, rows, "--text-field", "body", "--prompt", "x", "--max-new-tokens", 1)
    run(folder, text_file, "--documents", "line", "--max-mb", 0.00001, "--max-new-tokens", 1)


def test_without_text_there_are_samples_alone(folder: Path) -> None:
    output = run(folder, "--max-new-tokens", 2)
    assert "Once upon a time" in output and "Türkiye'de" in output
    assert "Quality: not measured" in output


def test_mistakes_are_user_errors(folder: Path, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model here"):
        run(text_file.parent / "absent", text_file)
    with pytest.raises(DataError, match="absent"):
        run(folder, tmp_path / "absent.txt")
    with pytest.raises(ConfigError, match="at most 300"):
        run(folder, text_file, "--context", 301)
    with pytest.raises(ConfigError, match="mmrec evaluate: top_p"):
        run(folder, text_file, "--top-p", 0)
    with pytest.raises(ConfigError, match="--max-mb 0"):
        run(folder, text_file, "--max-mb", 0)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n", encoding="utf-8")
    with pytest.raises(DataError, match="too little text"):
        run(folder, empty)


class Listener:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        raise AssertionError("an evaluation has no steps")


def test_the_stage_of_a_recipe_writes_the_same_report(folder: Path, text_file: Path, tmp_path: Path) -> None:
    out, stage, listener = tmp_path / "report", tmp_path / "stage", Listener()
    run(folder, text_file, "--context", 8, "--max-new-tokens", 5, "--out", out)
    settings = {"model": str(folder), "text": [str(text_file)], "context": [8], "max_new_tokens": 5}
    run_stage(one_stage("evaluate", settings), stage, listener)
    command, recipe = (json.loads((at / "evaluation.json").read_text("utf-8")) for at in (out, stage))
    for sample in (*command["samples"], *recipe["samples"]):
        del sample["seconds"]
    assert recipe == command and "evaluation.md" in listener.said[-1]
