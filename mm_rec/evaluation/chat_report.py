"""The report of a chat evaluation: chat_report.json for programs, chat_report.html for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mm_rec.runs.files import write_json, write_text
from mm_rec.runs.jinja_templates import jinja_environment

JSON_NAME, PAGE_NAME = "chat_report.json", "chat_report.html"
SAMPLES_PER_CATEGORY = 5  # answers of a category on the page

# (figure, its title, how it is written)
REFERENCE_METRICS = (
    ("bleu", "BLEU", "{:.1f}"),
    ("chrf", "chrF", "{:.1f}"),
    ("rouge_1", "ROUGE-1", "{:.3f}"),
    ("rouge_2", "ROUGE-2", "{:.3f}"),
    ("rouge_l", "ROUGE-L", "{:.3f}"),
    ("exact_match", "exact", "{:.1%}"),
    ("calls_right", "calls right", "{:.1%}"),
    ("token_accuracy", "right tokens", "{:.1%}"),
    ("loss", "loss", "{:.3f}"),
    ("perplexity", "perplexity", "{:,.2f}"),
    ("judge", "judge", "{:.2f}"),
)
REPLY_METRICS = (
    ("stop_rate", "ended", "{:.1%}"),
    ("format_rate", "form kept", "{:.1%}"),
    ("tokens", "tokens", "{:,.1f}"),
    ("words", "words", "{:,.1f}"),
    ("reference_words", "words given", "{:,.1f}"),
    ("distinct_1", "distinct words", "{:.1%}"),
    ("distinct_2", "distinct pairs", "{:.1%}"),
    ("repeated_4grams", "repeated 4-grams", "{:.1%}"),
)


def write_chat_report(report: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write both forms of what `evaluate_chat` returned, with `model` and `files` beside it; returns their paths."""
    values, page = folder / JSON_NAME, folder / PAGE_NAME
    write_json(values, dict(report))
    write_text(page, render_page(report))
    return values, page


def render_page(report: Mapping[str, Any]) -> str:
    """Return the report as an HTML page."""
    environment = jinja_environment(Path(__file__).parent)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    samples: dict[str, list[Any]] = {}
    for answer in report["answers"]:
        of_category = samples.setdefault(answer["category"], [])
        if len(of_category) < SAMPLES_PER_CATEGORY:
            of_category.append(answer)
    tables = {
        "Beside the given answers": available_metrics(report, REFERENCE_METRICS),
        "The replies by themselves": available_metrics(report, REPLY_METRICS),
    }
    return environment.get_template(PAGE_NAME).render(
        report=report, tables=tables, samples=dict(sorted(samples.items())), format_value=format_value
    )


def available_metrics(
    report: Mapping[str, Any], columns: tuple[tuple[str, str, str], ...]
) -> tuple[Any, ...]:
    """Return the columns for which the report has a figure."""
    return tuple(column for column in columns if report["total"][column[0]] is not None)


def format_value(value: float | None, form: str) -> str:
    """Format a figure; a dash where there is none."""
    return "–" if value is None else form.format(value)
