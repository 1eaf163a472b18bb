"""The report of a clean corpus: report.json for programs, report.html and the data card (README.md) for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mm_rec import __version__
from mm_rec.cleaning.corpus import CleanCorpus
from mm_rec.cleaning.dedup import DUPLICATE, REPEATED_PARAGRAPHS
from mm_rec.cleaning.document import Reason
from mm_rec.cleaning.measures import MEASURES
from mm_rec.cleaning.rules import rules_for
from mm_rec.cleaning.stats import EARLIER_PARAGRAPH, RemovalStats, SourceStats
from mm_rec.cleaning.steps import CleaningConfig
from mm_rec.runs.files import hash_file, write_json, write_text
from mm_rec.runs.jinja_templates import jinja_environment
from mm_rec.sources.locations import SourceFile

_MANY = 25  # sources; more are shown by folder
_CURVE = [step / 50 for step in range(51)]
_TEMPLATES = Path(__file__).parent


def write_report(corpus: CleanCorpus) -> Path:
    """Write the three forms into the corpus's report folder; returns the path of the page."""
    report = report_values(corpus)
    write_json(corpus.report / "report.json", report)
    environment = jinja_environment(_TEMPLATES)
    environment.filters |= {
        "mb": lambda size: f"{size / 1e6:,.1f}" if size >= 1e5 else f"{size / 1e6:.3f}",
        "share": _share,
        "number": lambda n: f"{n:,}",
    }
    for template, name in (("report.html", "report.html"), ("card.md", "README.md")):
        write_text(corpus.report / name, environment.get_template(template).render(report))
    return corpus.report / "report.html"


def report_values(corpus: CleanCorpus) -> dict[str, Any]:
    """Collect the values of the report."""
    total, config = corpus.stats.total(), corpus.config
    kinds = Counter(duplicate.kind for duplicate in corpus.duplicates)
    rules = _rules(config.cleaning)
    return {
        "corpus": str(corpus.out),
        "sha256": hash_file(corpus.out),
        "version": __version__,
        "language": config.cleaning.language,
        "files": len(corpus.files),
        "documents_rule": corpus.rule,
        "total": asdict(total),
        "stages": _stages(corpus),
        "sources": _sources(corpus),
        "dropped": _removals(corpus.stats.dropped),
        "cut": _removals(corpus.stats.cut),
        "markup_bytes": corpus.stats.markup_bytes(),
        "other_languages": {
            code: asdict(amount)
            for code, amount in sorted(corpus.stats.languages.items(), key=lambda entry: -entry[1].count)
        },
        "duplicates": {
            "exact": kinds["exact"],
            "near": kinds["near"],
            "clusters": len({duplicate.kept for duplicate in corpus.duplicates}),
            "similarities": _histogram(corpus),
            "detection": [(x, round(config.dedup.detection_probability(x), 4)) for x in _CURVE],
        },
        "evaluation": None
        if corpus.index is None
        else {
            "items": len(corpus.index.items),
            "too_short": corpus.index.skipped,
            "files": config.evaluation,
        },
        "problems": [
            {"reason": problem.reason, "place": problem.location, "message": problem.message}
            for problem in corpus.problems
        ],
        "rules": rules,
        "reasons": _reasons(rules),
        "config": json.loads(config.model_dump_json()),
        "licences": _licences(corpus.files),
        "seconds": corpus.seconds,
    }


def _rules(config: CleaningConfig) -> list[dict[str, Any]]:
    """The quality rules in force, with their limits."""
    rules = rules_for(config.language, config.rules, config.published_limits) if config.quality else []
    return [{**rule.model_dump(), "says": _describe_measure(rule.measure)} for rule in rules]


def _reasons(rules: list[dict[str, Any]]) -> dict[str, str]:
    """Describe each rule by name, in words: "Share of digits among the characters: at most 0.2"."""
    limits = (("min", "at least"), ("max", "at most"))
    return {
        rule["rule"]: rule["says"].rstrip(".")
        + ": "
        + " and ".join(f"{words} {rule[limit]:g}" for limit, words in limits if rule[limit] is not None)
        for rule in rules
    }


def _describe_measure(measure: str) -> str:
    """Describe a measure in a sentence: the first line of its docstring."""
    function = MEASURES[measure]
    return (getattr(function, "func", function).__doc__ or "").splitlines()[0]


def _stages(corpus: CleanCorpus) -> list[dict[str, Any]]:
    """Documents and bytes after each stage, from what was read to what was written."""
    total, stats = corpus.stats.total(), corpus.stats
    late = [
        stats.dropped.get(reason, RemovalStats()) for reason in (*DUPLICATE.values(), REPEATED_PARAGRAPHS)
    ]
    paragraphs = stats.cut.get(EARLIER_PARAGRAPH, RemovalStats()).bytes
    cleaned = (
        total.kept.count + sum(removal.count for removal in late),
        total.kept.bytes + sum(removal.bytes for removal in late) + paragraphs,
    )
    rows = [
        ("read", total.read.count, total.read.bytes),
        ("after cleaning", *cleaned),
        ("after deduplication", total.kept.count, total.kept.bytes),
    ]
    return [{"name": name, "documents": count, "bytes": size} for name, count, size in rows]


def _sources(corpus: CleanCorpus) -> dict[str, Any]:
    """Return the statistics of each file, or of each folder where there are many files."""
    by_source = corpus.stats.sources
    if len(by_source) > _MANY:
        folders: dict[str, SourceStats] = {}
        for name, source_stats in by_source.items():
            folders.setdefault(str(Path(name).parent), SourceStats(samples=source_stats.samples)).add(
                source_stats
            )
        by_source = folders
    return {name: asdict(source_stats) for name, source_stats in by_source.items()}


def _removals(removals: Mapping[Reason, RemovalStats] | Mapping[str, RemovalStats]) -> dict[str, Any]:
    """Return the removals by reason, most bytes first."""
    ordered = sorted(removals.items(), key=lambda entry: (-entry[1].bytes, entry[0]))
    return {reason: asdict(removal) for reason, removal in ordered}


def _histogram(corpus: CleanCorpus) -> dict[str, int]:
    """Near-duplicates by estimated similarity, in steps of 0.05."""
    steps = Counter(
        int(duplicate.similarity * 20) for duplicate in corpus.duplicates if duplicate.kind == "near"
    )
    return {f"{step / 20:.2f}": steps[step] for step in sorted(steps)}


def _licences(files: list[SourceFile]) -> dict[str, str]:
    """The licence notes that `mmrec data download` leaves beside what it fetches, by folder."""
    notes = {}
    for folder in sorted({file.parent for file in files if isinstance(file, Path)}):
        note = folder / "LICENCE.md"
        if note.is_file():
            notes[str(folder)] = note.read_text(encoding="utf-8").strip()
    return notes


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "–"
