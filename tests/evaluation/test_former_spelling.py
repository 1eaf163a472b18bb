"""`mmrec evaluate MODEL --text … --chat …`, the former spelling, says and writes what the commands do."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typer.testing import CliRunner

from mm_rec.cli.main import app
from mm_rec.errors import ConfigError
from mm_rec.models.loading import save_model

WORDS = ["cat", "dog", "tree", "house", "river", "song", "bread", "snow", "boat", "lamp", "door", "star"]
TASK = {
    "task": "stars",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_target": 0,
    "doc_to_choice": "{{choices}}",
    "num_fewshot": 0,
    "metric_list": [{"metric": "acc"}],
}


@pytest.fixture
def folder(
    build_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The working folder: a model and something of every kind to measure it on."""
    monkeypatch.chdir(tmp_path)
    save_model(build_model("mmrec").float(), tokenizer, tmp_path / "model")
    (tmp_path / "text.txt").write_text("Küçük çocuk oturdu.\n\nShe sang old songs.", encoding="utf-8")
    (tmp_path / "words.csv").write_text("\n".join(["word", *WORDS]) + "\n", encoding="utf-8")
    turns = [[("user", f"Soru {n}?"), ("assistant", f"Yanıt {n}.")] for n in range(3)]
    chats = [{"messages": [{"role": role, "content": said} for role, said in turn]} for turn in turns]
    write_rows(tmp_path / "chats.jsonl", chats)
    pair = {"sentence_good": "She sees.", "sentence_bad": "She see.", "UID": "agreement"}
    write_rows(tmp_path / "pairs" / "agreement.jsonl", [pair])
    write_rows(
        tmp_path / "tasks" / "rows.jsonl", [{"question": "Who sang?", "choices": ["a girl", "stars"]}] * 2
    )
    files = {
        "data_files": {"test": str(tmp_path / "tasks" / "rows.jsonl")},
        "cache_dir": str(tmp_path / "cache"),
    }
    (tmp_path / "tasks" / "stars.yaml").write_text(json.dumps({**TASK, "dataset_kwargs": files}))
    return tmp_path


def write_rows(path: Path, rows: Sequence[object]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def evaluate(words: str) -> str:
    """What `mmrec evaluate` prints."""
    result = CliRunner().invoke(app, ["evaluate", *words.split()], env={"COLUMNS": "160"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


SAMPLES = "--prompt Ayşe --max-new-tokens 3"


@pytest.mark.parametrize(
    ("former", "commands", "written"),
    [
        ("model --max-new-tokens 2", ["text model --max-new-tokens 2"], []),
        (
            f"model --text text.txt --context 8 --context 64 {SAMPLES} --top-k 5 --out out",
            [f"text model text.txt --context 8 --context 64 {SAMPLES} --top-k 5 --out out"],
            ["evaluation.json", "evaluation.md"],
        ),
        (
            f"--text text.txt --documents line --text words.csv --text-field word --max-mb 1 {SAMPLES} model",
            [f"text model text.txt words.csv --documents line --text-field word --max-mb 1 {SAMPLES}"],
            [],
        ),
        (
            "model --chat chats.jsonl --limit 2 --max-new-tokens 3 --out out",
            ["chat model chats.jsonl --limit 2 --max-new-tokens 3 --out out"],
            ["chat_report.html", "chat_report.json"],
        ),
        ("model --pairs pairs --out out", ["pairs model pairs --out out"], ["pairs.json"]),
        (
            "model --tasks stars --include-path tasks --limit 1 --out out",
            ["tasks model stars --include-path tasks --limit 1 --out out"],
            ["tasks.json"],
        ),
        (
            "model --list-format words.csv --level A2 --limit 2 --max-new-tokens 5 --training text.txt --out out",
            ["list model words.csv --level A2 --limit 2 --max-new-tokens 5 --training text.txt --out out"],
            ["list_format.json"],
        ),
        (
            f"model --chat chats.jsonl --pairs pairs --list-format words.csv --limit 1 {SAMPLES} --text text.txt",
            [
                "chat model chats.jsonl --limit 1 --max-new-tokens 3",
                "pairs model pairs",
                "list model words.csv --limit 1 --max-new-tokens 3",
                f"text model text.txt --temperature 0 {SAMPLES}",
            ],
            [],
        ),
        (f"model --pairs pairs {SAMPLES}", ["pairs model pairs"], []),
    ],
)
def test_a_former_spelling_prints_and_writes_what_the_commands_do(
    folder: Path, former: str, commands: list[str], written: list[str]
) -> None:
    printed = evaluate(former)
    out = folder / "out"
    assert sorted(path.name for path in out.glob("*")) == written
    assert printed == "".join(map(evaluate, commands))


def test_the_five_commands_are_listed_and_the_former_one_is_not() -> None:
    shown = evaluate("--help")
    assert all(f" {name} " in shown for name in ("text", "chat", "list", "pairs", "tasks"))
    assert "former" not in shown and evaluate("runs/tiny --help") == shown


def test_options_of_other_commands_are_refused(folder: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", "pairs", "model", "pairs", "--context", "8"])
    assert result.exit_code == 2 and "--context" in result.output


def test_a_judge_of_the_former_spelling_is_whole(folder: Path) -> None:
    with pytest.raises(ConfigError, match="both --judge-url"):
        evaluate("model --chat chats.jsonl --judge-url http://127.0.0.1/v1")
