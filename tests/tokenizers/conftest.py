"""One small tokenizer, trained on English and Turkish written here, shared by the tokenizer tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from mm_rec.tokenizers.loading import load_tokenizer
from mm_rec.tokenizers.training import TokenizerConfig, TokenizerTrainingReport, train_tokenizer

_SUBJECTS = ("The old captain", "My neighbour", "Ayşe", "Küçük çocuk", "İhtiyar balıkçı", "A quiet girl")
_PLACES = ("by the river", "in the garden", "ırmağın kıyısında", "in İstanbul", "ığdır yolunda", "at home")
_DEEDS = (
    "sings an old song.",
    "writes a letter.",
    "şarkı söylüyor.",
    "ekmek pişiriyor.",
    "counts the stars.",
)


def _documents() -> list[str]:
    """A document for each subject, a line for each place and deed."""
    return [
        "\n".join(f"{subject} {place} {deed}" for place in _PLACES for deed in _DEEDS) + "\n"
        for subject in _SUBJECTS
    ]


@pytest.fixture(scope="session")
def corpus() -> Callable[[], list[str]]:
    return _documents


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TokenizerTrainingReport]:
    folder = tmp_path_factory.mktemp("tokenizer") / "small"
    return folder, train_tokenizer(_documents, TokenizerConfig(vocab_size=480, threads=1), folder)


@pytest.fixture(scope="session")
def folder(trained: tuple[Path, TokenizerTrainingReport]) -> Path:
    return trained[0]


@pytest.fixture
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(folder)
