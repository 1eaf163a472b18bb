"""`mmrec evaluate --list-format`: does a model write a numbered sentence for each word it is given?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_INSTRUCTION = "### Instruction:"
_PROMPTS = 200
_MOST_TOKENS = 400  # of an answer: ten sentences need about half


def evaluate_list(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    words: str,
    console: Console,
    *,
    held_out: bool,
    level: str,
    language: str,
    template: Path | None,
    level_lists: Sequence[str],
    training: Sequence[str],
    adapter: str | None,
    prompts: int | None,
    max_new_tokens: int | None,
    seed: int | None,
    out: Path | None,
) -> None:
    """Ask for lists of words, score the answers, print what they keep to and where they fail, write it into `out`.

    `name` is the model's, for the report. Prompts are written as the adapter learnt them: as a chat, or as in the
    user's documents ("### Instruction:").
    """
    from mm_rec.evaluation.list_format import evaluate_list_format, list_prompts, make_list_rules
    from mm_rec.evaluation.list_generation import greedy_answer_function, read_training_sentences
    from mm_rec.runs.files import write_json
    from mm_rec.stories.wordlists.entries import read_levels, read_word_list
    from mm_rec.stories.wordlists.examples import HELD_OUT, is_held_out_word
    from mm_rec.stories.wordlists.prompts import load_template

    chosen = read_word_list(words, level, language)
    if held_out:
        chosen = [word for word in chosen if is_held_out_word(word, HELD_OUT)]
    asked = list_prompts(
        chosen,
        prompts or _PROMPTS,
        42 if seed is None else seed,
        level=level,
        template=load_template(language, template),
    )
    rules = make_list_rules(
        level,
        language,
        levels=read_levels(level_lists) if level_lists else None,
        training=read_training_sentences(training),
    )
    instruction = _instruction(adapter, tokenizer)
    written = "### Instruction: … ### Response:" if instruction else "a chat"
    console.print(f"{name}, asked as {written}", markup=False, highlight=False, soft_wrap=True)
    answer = greedy_answer_function(model, tokenizer, instruction, max_new_tokens or _MOST_TOKENS)
    with console.status(f"asking {len(asked):,} lists of {len(set(chosen)):,} words"):
        report = evaluate_list_format(answer, asked, rules)
    for line in report.lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        facts = {"model": name, "words": words, "held_out": held_out, "asked_as": written}
        write_json(out / "list_format.json", {**facts, **report.to_dict()})
        console.print(f"Written: {out / 'list_format.json'}", soft_wrap=True, markup=False, highlight=False)


def _instruction(adapter: str | None, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether prompts are to be in the format of the user's documents."""
    from mm_rec.data.prompt_lines import read_prompt_lines
    from mm_rec.models.adapters import find_adapter
    from mm_rec.models.loading import parse_adapter

    lines = [] if adapter is None else read_prompt_lines(find_adapter(parse_adapter(adapter)[0]))[0]
    return _INSTRUCTION in lines if lines else not tokenizer.chat_template
