"""The report: judgement, JSON, Markdown."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from transformers import PreTrainedModel

from mm_rec.evaluation.perplexity import TextScores
from mm_rec.evaluation.report import (
    EvaluationReport,
    TextResult,
    assess_quality,
    make_report,
    render_markdown,
)
from mm_rec.evaluation.report_console import render_report
from mm_rec.evaluation.samples import GeneratedSample, measure_diversity

SCORES = TextScores(
    documents=3,
    tokens=1203,
    text_tokens=1200,
    bytes=4000,
    loss=3.0,
    perplexity=20.1,
    bits_per_byte=1.3,
    token_accuracy=0.4,
)


def text(bits: float = 1.3, loss: float = 3.0, context: int = 128, size: int = 4000) -> TextResult:
    scores = dataclasses.replace(SCORES, bits_per_byte=bits, loss=loss, bytes=size)
    return TextResult("a|b.txt", context, scores)


def sample(words: str, ended: bool = True) -> GeneratedSample:
    return GeneratedSample("Bir [gün]", words, 12, 0.5, ended, measure_diversity(words))


@pytest.mark.parametrize(
    ("bits", "quality"),
    [
        (0.7, "very good"),
        (0.8, "very good"),
        (0.81, "good"),
        (1.5, "fair"),
        (1.99, "basic"),
        (2.5, "weak"),
        (3.0, "untrained"),
        (9.0, "untrained"),
    ],
)
def test_quality_by_bits_per_byte(bits: float, quality: str) -> None:
    assert assess_quality([text(bits)], []).quality == quality


def test_texts_count_by_their_bytes_at_the_longest_context() -> None:
    results = [text(9.0, context=64), text(1.0, size=30_000), text(2.0, size=10_000)]
    judgement = assess_quality(results, [])
    assert judgement.quality == "fair"
    assert judgement.reasons[0].startswith("1.250 bits per byte at a context of 128")


def test_what_a_longer_context_brings_is_said() -> None:
    better = assess_quality([text(loss=3.2, context=64), text(loss=3.0, context=512)], [])
    assert any("It uses the longer context" in reason for reason in better.reasons)
    same = assess_quality([text(loss=3.0, context=64), text(loss=3.0, context=512)], [])
    assert any("gains nothing from the longer context" in reason for reason in same.reasons)


def test_samples_and_short_texts_are_judged() -> None:
    circles = sample("git gel " * 30, ended=False)
    judgement = assess_quality([text(size=44)], [circles, sample("Ayşe geldi.")])
    said = " ".join(judgement.reasons)
    assert "44 bytes: too few" in said
    assert "1 of 2 samples go in circles" in said
    assert "1 of 2 samples use few different words" in said
    assert "1 of 2 samples ended by themselves" in said
    assert "do not repeat themselves" in " ".join(assess_quality([], [sample("Ayşe geldi.")]).reasons)
    assert assess_quality([], []).quality == "not measured"


def test_report_is_written_whole(model: PreTrainedModel, tmp_path: Path) -> None:
    endless = text()
    endless = dataclasses.replace(endless, scores=dataclasses.replace(SCORES, perplexity=math.inf))
    report = make_report(model, "runs/x", [endless], [sample(" geldi.\nSonra")])
    json_path, markdown_path = report.write(tmp_path / "new" / "folder")
    values = json.loads(json_path.read_text("utf-8"), parse_constant=pytest.fail)
    assert values["texts"][0]["scores"]["perplexity"] is None
    assert values["texts"][0]["scores"]["bits_per_byte"] == 1.3
    assert values["model"]["parameters"] == model.num_parameters()
    assert values["samples"][0]["measures"]["words"] == 2
    assert markdown_path.read_text("utf-8") == render_markdown(report)
    assert sorted(path.name for path in json_path.parent.iterdir()) == ["evaluation.json", "evaluation.md"]


def test_markdown_names_everything(build_model: Callable[[str], PreTrainedModel]) -> None:
    report = make_report(build_model("mmrec"), "runs/x", [text()], [sample(" geldi.\nSonra")])
    page = render_markdown(report)
    assert "**Quality: fair.**" in page
    assert "| a\\|b.txt | 128 | 3 | 1,203 | 4,000 | 3.0000 | 20.10 | 1.3000 | 40.0% |" in page
    assert "> **Bir [gün]** geldi.  \n> Sonra  \n" in page
    assert "bytes whatever the length" in page and "no limit" in page
    page = render_markdown(make_report(build_model("llama"), "runs/x", [], []))
    assert "bytes a token" in page and "4,096 tokens" in page
    assert "## Texts" not in page and "## Samples" not in page


def test_terminal_view(model: PreTrainedModel) -> None:
    report: EvaluationReport = make_report(model, "runs/x", [text()], [sample(" geldi. [bold]")])
    console = Console(width=100, record=True)
    with console.capture() as capture:
        console.print(render_report(report))
    shown = capture.get()
    assert "a|b.txt" in shown and "1.3000" in shown
    assert "Bir [gün] geldi. [bold]" in shown
    assert "Quality: fair" in shown
