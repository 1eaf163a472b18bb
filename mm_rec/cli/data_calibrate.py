"""`mmrec data calibrate`: what the cleaning rules would do to text that is known to be good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from mm_rec.cli.data_options import Documents, Files, TextField

if TYPE_CHECKING:
    from mm_rec.cleaning.calibration import Calibration


def calibrate(
    files: Files,
    language: Annotated[str, typer.Option(help="Language of the text.")] = "tr",
    text_field: TextField = "text",
    documents: Documents = None,
) -> None:
    """Show how each measure is spread over good text, and which published limits would take too much of it."""
    from mm_rec.cleaning.calibration import calibrate as measure
    from mm_rec.sources.documents import read_documents

    found = read_documents(files, text_field, None if documents is None else documents.value)
    texts = (document.text for document in found)
    Console().print(_table(measure(texts, language)))


def _table(calibrations: list[Calibration]) -> Table:
    table = Table(
        "rule", "measure", title="published limits on this text; limits that take more than 1 % are moved"
    )
    for quantile in calibrations[0].quantiles:
        table.add_column(f"{quantile:.0%}", justify="right")
    for name in ("published", "takes", "moved to"):
        table.add_column(name, justify="right")
    for item in calibrations:
        moved = (item.min, item.max) != (item.rule.min, item.rule.max)
        table.add_row(
            item.rule.rule,
            item.rule.measure,
            *(f"{value:.3g}" for value in item.quantiles.values()),
            _limits(item.rule.min, item.rule.max),
            f"{item.removed_share:.1%}",
            _limits(item.min, item.max) if moved else "",
            style="bold" if moved else None,
        )
    return table


def _limits(low: float | None, high: float | None) -> str:
    return " … ".join(f"{value:.3g}" if value is not None else "" for value in (low, high)).strip()
