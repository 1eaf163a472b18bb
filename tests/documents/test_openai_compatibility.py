"""The user's document on OpenAI compatibility: its Python runs as written, in order, in one namespace."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

SEEDS = Path(__file__).resolve().parents[2] / "../shared/seeds"
# tiktoken keeps a file of ranks under the SHA-1 of its URL.
CL100K = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"


@pytest.fixture
def blocks() -> list[str]:
    found = sorted(SEEDS.glob("003_*.txt"))
    if not found:
        pytest.skip(f"the user's document 003 is not in {SEEDS}")
    python = re.findall(r"```python\n(.*?)```", found[0].read_text(encoding="utf-8"), flags=re.DOTALL)
    return [block for block in python if "import" in block or "api" in block]


@pytest.fixture
def ranks(real_data: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "tiktoken"
    cache.mkdir()
    shutil.copy(real_data("tok/cl100k_base.tiktoken"), cache / CL100K)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))


@pytest.mark.seldom(covers=["mm_rec/*"])
def test_the_documents_python_runs_as_written(
    blocks: list[str],
    ranks: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    # The document uses ChatMessage before it imports it.
    exec("from mm_rec.data.chat_format import ChatMessage", namespace)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, "document 003", "exec"), namespace)
    printed = capsys.readouterr().out
    losses = [float(number) for number in re.findall(r"Epoch \d+, Loss: ([\d.]+)", printed)]
    assert len(losses) == 10 and losses[-1] < losses[0] / 2
    assert re.search(r"Loss: \d+\.\d+, Perplexity: \d+", printed)
    response = namespace["response"]
    assert isinstance(response, dict) and response["choices"][0]["message"]["role"] == "assistant"
