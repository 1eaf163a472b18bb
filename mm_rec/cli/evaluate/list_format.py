"""`mmrec evaluate list`: does a model write a numbered sentence for each word it is given?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mm_rec.cli.evaluate.common import Out, open_measurable, print_line, write_result
from mm_rec.cli.sampling_options import Adapter, Device, ModelPath, Seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INSTRUCTION = "### Instruction:"


def list_format(
    model: ModelPath,
    list_format: Annotated[
        str, typer.Argument(metavar="WORDS", help="List of the words that sentences are asked for.")
    ],
    held_out: Annotated[
        bool,
        typer.Option(
            "--held-out",
            help="Only the tenth that list-format data holds out (with another share: give held_out_words.csv).",
        ),
    ] = False,
    level: Annotated[str, typer.Option(help="CEFR level.")] = "A1",
    language: Annotated[str, typer.Option(help="Language of the words.")] = "en",
    template: Annotated[
        Path | None, typer.Option(help="Text file with the prompt that the data was made with.")
    ] = None,
    level_list: Annotated[
        list[str] | None,
        typer.Option(help="Lists of words with their CEFR levels, for the rule of the level."),
    ] = None,
    training: Annotated[
        list[str] | None, typer.Option(help="Training files, to find sentences learnt by heart.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many lists of words are asked.")] = 200,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="The most tokens of an answer: ten sentences need about half.")
    ] = 400,
    out: Out = None,
    adapter: Adapter = None,
    seed: Seed = 42,
    device: Device = "auto",
) -> None:
    """Ask for a numbered sentence with each word of a list; say what the answers keep to and where they fail.

    Prompts are written as the adapter learnt them: as a chat, or as in the documents ("### Instruction:").
    """
    loaded, tokenizer, name = open_measurable(model, adapter, device)
    from mm_rec.evaluation.list_format import evaluate_list_format, list_prompts, make_list_rules
    from mm_rec.evaluation.list_generation import greedy_answer_function, read_training_sentences
    from mm_rec.stories.wordlists.entries import read_levels, read_word_list
    from mm_rec.stories.wordlists.examples import HELD_OUT, is_held_out_word
    from mm_rec.stories.wordlists.prompts import load_template

    console = Console()
    chosen = read_word_list(list_format, level, language)
    if held_out:
        chosen = [word for word in chosen if is_held_out_word(word, HELD_OUT)]
    asked = list_prompts(
        chosen, limit, 42 if seed is None else seed, level=level, template=load_template(language, template)
    )
    rules = make_list_rules(
        level,
        language,
        levels=read_levels(level_list) if level_list else None,
        training=read_training_sentences(training or []),
    )
    instruction = _instruction(adapter[0] if adapter else None, tokenizer)
    written = "### Instruction: … ### Response:" if instruction else "a chat"
    print_line(console, f"{name}, asked as {written}")
    answer = greedy_answer_function(loaded, tokenizer, instruction, max_new_tokens)
    with console.status(f"asking {len(asked):,} lists of {len(set(chosen)):,} words"):
        report = evaluate_list_format(answer, asked, rules)
    for line in report.lines():
        print_line(console, line)
    facts = {"model": name, "words": list_format, "held_out": held_out, "asked_as": written}
    write_result({**facts, **report.to_dict()}, out, "list_format.json", console)


def _instruction(adapter: str | None, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether prompts are to be in the format of the user's documents."""
    from mm_rec.data.prompt_lines import read_prompt_lines
    from mm_rec.models.adapters import find_adapter
    from mm_rec.models.loading import parse_adapter

    lines = [] if adapter is None else read_prompt_lines(find_adapter(parse_adapter(adapter)[0]))[0]
    return _INSTRUCTION in lines if lines else not tokenizer.chat_template
