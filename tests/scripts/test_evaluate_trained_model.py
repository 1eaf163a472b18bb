"""The documented evaluation command, run as written from the root of the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mm_rec.models.loading import save_model, save_portable
from mm_rec.models.presets import build, preset
from mm_rec.tokenizers.loading import load_tokenizer
from mm_rec.tokenizers.training import TokenizerConfig, train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "mm_rec/scripts/evaluate_trained_model.py"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    lines = ["The quick brown fox jumps over the lazy dog.", "Machine learning is learning from data."]
    train_tokenizer(lambda: lines * 3, TokenizerConfig(vocab_size=330, threads=1), folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    model = build(preset("tiny").config(vocab_size=330, num_hidden_layers=2), seed=0)
    save_portable(model, tokenizer, folder / "final_checkpoint.pt")
    save_model(model, tokenizer, folder / "model")
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, *map(str, arguments)],
        cwd=ROOT,
        env={**environment, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_as_documented(checkpoints: Path) -> None:
    done = run(
        *("--checkpoint", checkpoints / "final_checkpoint.pt"),
        *("--test-text", "The quick brown fox jumps over the lazy dog."),
        *("--prompt", "Machine learning", "--max-length", 100),
    )
    assert (done.returncode, done.stderr) == (0, "")
    for part in ("perplexity", "right", "Machine learning", " tokens, ", "Quality: "):
        assert part in done.stdout, part


def test_a_folder_several_prompts_and_underscores(checkpoints: Path) -> None:
    done = run(
        *("--checkpoint", checkpoints / "model", "--test_text", "lazy dog", "--max_length", 3),
        *("--prompt", "The quick", "--prompt", "The lazy"),
    )
    assert done.returncode == 0, done.stderr
    assert "The quick" in done.stdout and "The lazy" in done.stdout


def test_mistakes_are_one_paragraph(checkpoints: Path) -> None:
    done = run("--checkpoint", checkpoints / "absent.pt")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "absent.pt" in done.stderr and "Traceback" not in done.stderr
    assert run("--checkpoint", checkpoints / "model", "--max-length", 0).returncode == 2
    assert run().returncode == 2
