"""Training refuses text that it will be judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mm_rec.cleaning.contamination import EvaluationIndex, EvaluationItem, evaluation_items
from mm_rec.data.prepare import SourcePlan
from mm_rec.data.sections import DataSection
from mm_rec.errors import DataError
from mm_rec.sources.documents import read_documents
from mm_rec.text.words import guess_language

_HALF = (
    0.5  # of a validation document's runs of words: less is a phrase or a footer that many documents share
)
_SHOWN = 3


def check_contamination(
    data: DataSection, plans: Mapping[str, SourcePlan], say: Callable[[str], None]
) -> None:
    """Hold the run's benchmarks and validation files against its training text.

    A benchmark item counts where a run of 13 words of it (or all of it) stands in training text, a validation document
    where half of its runs do. Raises DataError, or with `data.contamination: warn` says so. Documents that are held
    out by their hash are not compared: equal ones are on the same side, near ones `mmrec data clean` takes out.
    """
    if data.contamination == "off":
        return
    for name, items, least in (
        ("benchmark items", list(evaluation_items(data.benchmarks)), 0.0),
        ("validation documents", _validation_items(data), _HALF),
    ):
        if items:
            _check(name, items, least, data, plans, say)


def _validation_items(data: DataSection) -> list[EvaluationItem]:
    if not data.validation:
        return []
    documents = read_documents(data.validation, data.text_field, data.documents)
    return [EvaluationItem(document.text, f"{document.path}:{document.line}") for document in documents]


def _check(
    name: str,
    items: list[EvaluationItem],
    least: float,
    data: DataSection,
    plans: Mapping[str, SourcePlan],
    say: Callable[[str], None],
) -> None:
    index = EvaluationIndex.build(items, guess_language(" ".join(item.text for item in items[:1000])))
    shares = index.found_shares(text for plan in plans.values() for text in plan.texts("train"))
    found = [item for item, share in zip(index.items, shares, strict=True) if share > 0 and share >= least]
    if not found:
        say(f"none of {len(index.items):,} {name} stands in the training text")
        return
    examples = "; ".join(f"{item.location}: “{item.text[:60]}…”" for item in found[:_SHOWN])
    message = f"{len(found):,} of {len(index.items):,} {name} stand in the training text: {examples}"
    if data.contamination == "refuse":
        files = " ".join(f"--evaluation {file}" for file in [*data.benchmarks, *data.validation])
        raise DataError(
            f"{message}. What is measured on them would be worth nothing. Take them out (mmrec data clean … {files}), "
            "or go on in spite of it with --contamination warn"
        )
    say(f"warning: {message}; what is measured on them is worth little")
