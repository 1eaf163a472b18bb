"""Arguments and options that every command has which reads text."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class DocumentsChoice(StrEnum):
    """The units that a .txt file is cut into."""

    file = "file"
    blank_line = "blank-line"
    line = "line"


Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILES",
        help="Files, folders, globs or URLs of .txt, .jsonl, .csv, .tsv (also .gz, .zst) or .parquet.",
        show_default=False,
    ),
]
TextField = Annotated[str, typer.Option(help="Field of a row that holds the text.")]
Documents = Annotated[
    DocumentsChoice | None,
    typer.Option(
        help="What a document is in .txt (default: file; blank-line for one .txt).", show_default=False
    ),
]
