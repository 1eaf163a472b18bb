"""`mmrec data list-format`: training examples from a list of words, numbered words in, numbered sentences out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

_TOLD = 5  # of what was left out


def list_format(
    words: Annotated[
        str,
        typer.Argument(
            metavar="WORDS",
            help="Words with sentences (.json, .jsonl, .csv, .tsv), or a list of words for --sentences.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write into.")],
    sentences: Annotated[
        str | None, typer.Option(help="Sentences for words without: by headword, or plain ones to search.")
    ] = None,
    sentence_column: Annotated[
        str | None, typer.Option(help="Column of the sentences (a number where there is no header).")
    ] = None,
    level: Annotated[
        str, typer.Option(help="CEFR level, A1 to C2; words of other levels are left out.")
    ] = "A1",
    language: Annotated[str, typer.Option(help="Language of the words (prompts: en, tr).")] = "en",
    template: Annotated[
        Path | None, typer.Option(help="Text file with another prompt: {words}, {level}, {count}.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Examples to make.")] = 2000,
    shares: Annotated[
        str, typer.Option(help="Numbers of words, and how much of the examples has them.")
    ] = "10=70,8-9=20,6-7=10",
    held_out: Annotated[
        float | None,
        typer.Option(min=0, help="Share of the words to hold out for evaluation (default: 0.1; 0 for none)."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of words.")] = 42,
    hard_cut: Annotated[
        str, typer.Option(help="What stands between the examples of the .txt; \\n is a line end.")
    ] = "\\n\\n\\n",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files in --out.")] = False,
) -> None:
    """Make list-format examples: some words in the prompt, a numbered sentence for each in the answer."""
    from mm_rec.errors import ConfigError
    from mm_rec.stories.wordlists.entries import fit_entries, read_entries
    from mm_rec.stories.wordlists.examples import HELD_OUT, make_examples, parse_shares, split_entries
    from mm_rec.stories.wordlists.export import describe_examples, file_names, write_list_format
    from mm_rec.stories.wordlists.prompts import load_template
    from mm_rec.text.cefr import require_cefr_level

    console = Console(highlight=False, soft_wrap=True, markup=False)
    level = require_cefr_level(level)
    there = [name for name in file_names(level) if (out / name).exists()]
    if there and not overwrite:
        raise ConfigError(f"--out {out} has {', '.join(there)} already. Give another folder, or --overwrite")
    asked = load_template(language, template)
    wanted = parse_shares(shares)
    without: list[str] = []
    unfit: list[str] = []
    with console.status("reading the words"):
        entries = read_entries(
            words, sentences, level, sentence_column=sentence_column, language=language, report=without.append
        )
        entries = fit_entries(entries, language, unfit.append)
    learnt, kept = split_entries(entries, HELD_OUT if held_out is None else held_out)
    examples = make_examples(learnt, count, seed, wanted, language)
    held_words = list(dict.fromkeys(entry.word for entry in kept))
    cut = hard_cut.replace("\\n", "\n")
    paths = write_list_format(examples, out, level, asked, held_words, cut)
    _tell(console, "left out, words without a sentence", without)
    _tell(console, "left out, sentences", unfit)
    console.print("\n".join(describe_examples(examples, level, asked)))
    if held_words:
        console.print(f"words held out: {len(held_words):,} ({', '.join(held_words)})")
    for path in paths:
        console.print(f"written: {path}")


def _tell(console: Console, what: str, messages: list[str]) -> None:
    """Print how many there are, and the first of them."""
    if messages:
        rest = f"\n  … and {len(messages) - _TOLD:,} more" if len(messages) > _TOLD else ""
        console.print(f"{what}: {len(messages):,}\n  " + "\n  ".join(messages[:_TOLD]) + rest)
