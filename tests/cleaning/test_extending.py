"""A filter and a rule from outside the package: what CONTRIBUTING.md says is enough is enough."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from turkish_prose import prose

from mm_rec.cleaning import lines, measures, rules, shards, steps
from mm_rec.cleaning.corpus import CleanCorpus, CleaningProgress, CorpusConfig, clean_corpus
from mm_rec.cleaning.document import CleaningDocument, CleaningStep, Dropped, Reason
from mm_rec.cleaning.report import report_values
from mm_rec.cleaning.steps import Cleaner, CleaningConfig, ResolvedCleaning, resolve_cleaning

TOY = Reason("toy")


def toy_filter(cleaning: ResolvedCleaning) -> CleaningStep:
    def step(document: CleaningDocument) -> CleaningDocument | Dropped:
        count = document.text.count("zürafa")
        return Dropped(TOY, f"{count} giraffes") if count else document

    return step


def exclamations(document: CleaningDocument) -> float:
    """Exclamation marks a word."""
    return document.text.count("!") / max(1, len(document.words))


class Files(NamedTuple):
    """Copies of the files of limits and phrases, which a test may edit."""

    thresholds: Path
    phrases: Path


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    found = Files(tmp_path / "thresholds.yaml", tmp_path / "phrases.yaml")
    for module, name, copy in ((rules, "_THRESHOLDS", found.thresholds), (lines, "_PHRASES", found.phrases)):
        shutil.copy(getattr(module, name), copy)
        monkeypatch.setattr(module, name, copy)
    return found


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def clean(source: Path, out: Path, progress: CleaningProgress | None = None) -> CleanCorpus:
    return clean_corpus([source], out, CorpusConfig(), processes=1, progress=progress)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Thirty pages; one has a giraffe, two shout."""
    texts = [prose(number) for number in range(30)]
    texts[4] += " Bir zürafa da vardı."
    for number in (7, 8):
        texts[number] = texts[number].replace(".", "!!!")
    path = tmp_path / "pages.jsonl"
    rows = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def dropped(corpus: CleanCorpus) -> dict[str, int]:
    return {reason: removal.count for reason, removal in corpus.stats.dropped.items()}


def test_a_filter_is_a_function_and_a_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "STEPS", (*steps.STEPS, toy_filter))
    corpus = clean(source, tmp_path / "out.txt")
    assert dropped(corpus) == {"toy": 1}
    (sample,) = report_values(corpus)["dropped"]["toy"]["samples"]
    assert sample["detail"] == "1 giraffes" and sample["place"] == f"{source}:5"


def test_a_rule_is_a_measure_and_a_line(
    source: Path, tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(measures.MEASURES, "exclamations", exclamations)  # so that it goes after the test
    measures.measure(exclamations)
    with files.thresholds.open("a", encoding="utf-8") as file:
        file.write("- {rule: shouting, measure: exclamations, max: 0.1, en: {max: 0.2}}\n")
    corpus = clean(source, tmp_path / "out.txt")
    report = report_values(corpus)
    assert dropped(corpus) == {"shouting": 2}
    assert report["reasons"]["shouting"] == "Exclamation marks a word: at most 0.1"
    kept = Cleaner(resolve_cleaning(CleaningConfig(rules={"shouting": {"active": False}})))
    assert kept.clean(prose(7).replace(".", "!!!"))[1] is None


class Killed(BaseException):
    """In place of SIGKILL."""


@pytest.mark.parametrize("edited", ["a limit", "a phrase", "nothing"])
def test_a_killed_cleaning_uses_only_shards_of_the_same_limits_again(
    edited: str, source: Path, tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 4_000)
    out, work = tmp_path / "out.txt", tmp_path / "out.txt.work"

    def keys() -> dict[str, str]:
        return {path.name: json.loads(path.read_text())["key"] for path in work.glob("*.json")}

    def kill_after_two(size: int) -> None:
        if len(keys()) == 2:
            raise Killed

    with pytest.raises(Killed):
        clean(source, out, CleaningProgress(advance=kill_after_two))
    before, after = keys(), dict[str, str]()
    assert len(before) == 2
    if edited == "a limit":
        replace(
            files.thresholds,
            "measure: words, min: 50, tr: {min: 35}",
            "measure: words, min: 50, tr: {min: 100}",
        )
    elif edited == "a phrase":
        replace(files.phrases, "kvkk", "zürafa")
    progress = CleaningProgress(stage=lambda name, size: after.update(keys()))
    corpus = clean(source, out, progress)
    assert all((after[name] == key) == (edited == "nothing") for name, key in before.items())
    assert corpus.stats.record() == clean(source, tmp_path / "again.txt").stats.record()
