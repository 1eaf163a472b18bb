"""A little text and a recipe that trains on it in seconds."""

from pathlib import Path
from typing import Any

import pytest

from mm_rec.stories.generator import stories


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 short documents, one a line of .jsonl."""
    import json

    path = tmp_path_factory.mktemp("text") / "stories.jsonl"
    rows = (json.dumps({"text": story.text}, ensure_ascii=False) for story in stories(seed=3, count=300))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def recipe_values(text_file: Path) -> dict[str, Any]:
    """The settings of six steps of a two-layer model."""
    return {
        "data": {"sources": [str(text_file)]},
        "tokenizer": {"vocab_size": 600},
        "model": {"size": "tiny", "changes": {"num_hidden_layers": 2, "hidden_size": 64}},
        "steps": 6,
        "seq_len": 32,
        "batch_size": 4,
        "validate_every": 3,
        "precision": "float32",
    }


class Listener:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """Keep a sentence."""
        self.said.append(text)

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        """Nothing."""

    @property
    def text(self) -> str:
        """All sentences."""
        return "\n".join(self.said)


@pytest.fixture
def listener() -> Listener:
    """A fresh listener."""
    return Listener()
