from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mm_rec.cli.tokenizer import app
from mm_rec.errors import ConfigError, DataError, TokenizerError
from mm_rec.tokenizers.loading import load_tokenizer

Corpus = Callable[[], list[str]]


@pytest.fixture
def text_file(corpus: Corpus, tmp_path: Path) -> Path:
    path = tmp_path / "hikaye.txt"
    path.write_text("\n".join(corpus()), encoding="utf-8")
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_train_then_report(text_file: Path, tmp_path: Path) -> None:
    output = run("train", text_file, "--vocab-size", 480, "--out", tmp_path / "tok", "--threads", 1)
    assert "Vocabulary 480" in output
    assert "180 lines, 0 differ" in output
    assert len(load_tokenizer(tmp_path / "tok")) == 480
    with pytest.raises(ConfigError, match="--overwrite"):
        run("train", text_file, "--vocab-size", 400, "--out", tmp_path / "tok")
    run("train", text_file, "--vocab-size", 480, "--out", tmp_path / "tok", "--threads", 1, "--overwrite")
    rows = tmp_path / "en.jsonl"
    rows.write_text(json.dumps({"body": "The old captain sings."}) + "\n", encoding="utf-8")
    figures = tmp_path / "figures.json"
    output = run("report", tmp_path / "tok", text_file, "--json", figures)
    assert "hikaye" in output
    assert list(json.loads(figures.read_text(encoding="utf-8"))["languages"]) == ["hikaye"]
    for place in ("tokenizer", "final", "best", "checkpoints/step-7/model"):  # of a run
        held = tmp_path / place.split("/")[0] / "run" / place
        shutil.copytree(tmp_path / "tok", held)
        assert "hikaye" in run("report", tmp_path / place.split("/")[0] / "run", text_file)
    output = run("report", tmp_path / "tok", "--language", f"english={rows}", "--text-field", "body")
    assert "english" in output


def test_sample_limit_is_kept_and_said(text_file: Path, tmp_path: Path) -> None:
    output = run("train", text_file, "--vocab-size", 380, "--out", tmp_path / "tok", "--sample-mb", 0.004)
    assert "0.0 MB of it" in output
    written = json.loads((tmp_path / "tok" / "training_report.json").read_text(encoding="utf-8"))
    assert written["bytes_used"] <= 4000 < written["bytes_read"]


def test_mistakes_are_user_errors(text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "tok"
    with pytest.raises(TokenizerError, match="--vocab-size"):
        run("train", text_file, "--out", out)
    with pytest.raises(ConfigError, match="character_coverage"):
        run("train", text_file, "--out", out, "--character-coverage", 2)
    result = CliRunner().invoke(app, ["train", str(text_file), "--out", str(out), "--documents", "page"])
    assert result.exit_code == 2
    assert "blank-line" in result.output
    with pytest.raises(DataError, match="absent"):
        run("train", tmp_path / "absent.txt", "--out", out)
    assert not out.exists()
    with pytest.raises(TokenizerError, match="no such folder"):
        run("report", out, text_file)
    with pytest.raises(ConfigError, match="nothing to report on"):
        run("report", tmp_path)
    with pytest.raises(ConfigError, match="NAME=FILE"):
        run("report", tmp_path, "--language", "tr")


def test_help_does_not_import_heavy_packages() -> None:
    heavy = ("torch", "transformers", "numpy")
    check = f"import sys, mm_rec.cli.tokenizer; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
