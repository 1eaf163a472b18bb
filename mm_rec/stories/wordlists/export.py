"""List-format examples as training files: Alpaca's JSON, plain text with a hard-cut string, OpenAI's messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mm_rec.data.conversations.dataset_writer import write_rows
from mm_rec.errors import ConfigError
from mm_rec.runs.files import remove, write_text
from mm_rec.stories.wordlists.examples import ListExample
from mm_rec.stories.wordlists.prompts import instruction_text, prompt, response
from mm_rec.text.words import words

HARD_CUT = "\n\n\n"
HELD_OUT_FILE = "held_out_words.csv"


def file_names(level: str) -> tuple[str, str, str, str]:
    """The files that `write_list_format` writes for a level."""
    stem = f"training_data_{level.lower()}_list_format"
    return f"{stem}.json", f"{stem}.txt", f"{stem}.jsonl", HELD_OUT_FILE


def write_list_format(
    examples: Sequence[ListExample],
    folder: Path,
    level: str,
    template: str,
    held_out: Sequence[str] = (),
    hard_cut: str = HARD_CUT,
) -> list[Path]:
    """Write examples in all three formats, and the words that are held out; each file is whole or absent.

    In the text, `hard_cut` stands between examples. Raises ConfigError where it is empty or stands inside one.
    """
    pairs = [(prompt(example.words, level, template), response(example.sentences)) for example in examples]
    texts = [instruction_text(*pair) for pair in pairs]
    if not hard_cut or any(hard_cut in text for text in texts):
        raise ConfigError(
            f"the hard-cut string {hard_cut!r} would not part the examples: it is empty or stands inside one. "
            f"Choose another with --hard-cut, for example {HARD_CUT!r}"
        )
    alpaca, text, messages, words_file = (folder / name for name in file_names(level))
    write_rows([{"instruction": asked, "input": "", "output": answer} for asked, answer in pairs], alpaca)
    write_text(text, hard_cut.join(texts))
    write_rows([_messages(asked, answer) for asked, answer in pairs], messages)
    if not held_out:
        remove(words_file)  # of an earlier call
        return [alpaca, text, messages]
    write_text(words_file, "word\n" + "".join(f"{word}\n" for word in held_out))
    return [alpaca, text, messages, words_file]


def _messages(asked: str, answer: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def describe_examples(examples: Sequence[ListExample], level: str, template: str) -> list[str]:
    """Describe the examples in lines: their sizes, words and sentences and how often each is used, lengths."""
    sizes = sorted(Counter(len(example.words) for example in examples).items(), reverse=True)
    uses = Counter(word for example in examples for word in example.words)
    pairs = Counter(
        pair for example in examples for pair in zip(example.words, example.sentences, strict=True)
    )
    lengths = sorted(len(words(sentence)) for _, sentence in pairs)
    longest = max(
        len(instruction_text(prompt(example.words, level, template), response(example.sentences)))
        for example in examples
    )
    return [
        f"{len(examples):,} examples: " + ", ".join(f"{count:,} of {size} words" for size, count in sizes),
        f"words: {len(uses):,}; uses of each: {_span(uses.values())}",
        f"sentences: {len(pairs):,}; uses of each: {_span(pairs.values())}; their words: {_span(lengths)}, "
        f"median {lengths[len(lengths) // 2]}",
        f"longest example: {longest:,} characters",
    ]


def _span(numbers: Iterable[int]) -> str:
    ordered = sorted(numbers)
    least, most = ordered[0], ordered[-1]
    return str(least) if least == most else f"{least} to {most}"
