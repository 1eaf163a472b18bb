"""The text of the recipe a1_sentences.yaml, made of real sentences: simple English to pre-train on, lists to adapt to.

    python recipes/a1_sentences.py ../shared/data a1

The folder of real test data (or one with the same files) has Tatoeba's English sentences, OneStopEnglish's elementary
articles, the words of CEFR-J, and A1 words with sentences. What is written: a1/simple_english.jsonl (articles, loose
sentences, and pages of a workbook: some words, numbered, and then a short sentence for each) and a1/lists (the training
data of the user's document). The choice is seeded.

The lists hold out a tenth of the words from the adapter. The base has met them on its pages, as a model of the hub has
met every word; --strict leaves them out of the pages too.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from mm_rec.stories.wordlists.examples import HELD_OUT, is_held_out_word
from mm_rec.stories.wordlists.rows import list_file, read_words
from mm_rec.text.inflection import WordIndex

WORKBOOK_CHARACTERS = 36_000_000
SHORTEST = 10  # sentences of a word
LOOSE_PAGES = 1_500
HEADINGS = (
    "", "", "# Words", "### Exercise {number}:", "Unit {number}: {count} words", "Use these {count} words:",
    "Write a sentence for each of these {count} words:", "## Level A{number}", "New words of this lesson:",
)  # fmt: skip
BETWEEN = (
    "", "", "### Answers:", "Sentences (1-{count}):", "Use each word in a sentence, please.",
    "Here is a sentence with each word (1-{count}).\n\n# Answers:", "Answer:", "Now the sentences.",
    "Write the numbered sentences (1-{count}) simply and naturally.\n\n### Sentences:",
)  # fmt: skip
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")


def tatoeba(data: Path) -> list[str]:
    """The different English sentences."""
    lines = (data / "cefr/tatoeba_eng_tur.tsv").read_text(encoding="utf-8").splitlines()
    return sorted({line.split("\t")[0] for line in lines})


def articles(data: Path) -> Iterator[str]:
    """The elementary articles."""
    for line in (data / "en/onestop_english.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["level"] == "ele":
            yield row["text"].lstrip("\ufeff").strip()


def headwords(data: Path) -> list[str]:
    """The words of the CEFR-J vocabulary, all levels, as a dictionary has them."""
    rows = read_words(list_file(data / "cefr/cefrj-vocabulary-profile-1.5.csv"))
    return [row.spellings[0] for row in rows if _WORD.fullmatch(row.spellings[0])]


def workbook(
    sentences: list[str], dictionary: list[str], chance: random.Random, strict: bool
) -> Iterator[str]:
    """Pages of 5 to 11 words and a sentence for each; rare words come more often than in text.

    A word is one of a sentence as it stands there, or one of the dictionary in any of its forms.

    What stands before the words and between them and the sentences differs in words and length from page to page, so
    that a word is found by its number and not by its place.
    """
    known: dict[str, list[str]] = defaultdict(list)
    index = WordIndex(dictionary)
    for sentence in sentences:
        surface = {found.lower() for found in _WORD.findall(sentence) if "'" not in found}
        for word in sorted(surface | {found.lower() for found in index.find(sentence)}):
            if not (strict and is_held_out_word(word, HELD_OUT)):
                known[word].append(sentence)
    words = sorted(known)
    weights = [len(known[word]) ** 0.5 for word in words]
    short = {word: sorted(found, key=len)[:SHORTEST] for word, found in known.items()}
    written = 0
    while written < WORKBOOK_CHARACTERS:
        chosen = list(dict.fromkeys(chance.choices(words, weights, k=14)))[: chance.randint(5, 11)]
        count = len(chosen)
        asked = "\n".join(f"{number}. {word}" for number, word in enumerate(chosen, 1))
        answers = "\n".join(
            f"{number}. {chance.choice(short[word])}" for number, word in enumerate(chosen, 1)
        )
        before, after = (around(kind, sentences, count, chance) for kind in (HEADINGS, BETWEEN))
        page = f"{before}\n{asked}\n\n{after}\n{answers}".replace("\n\n\n", "\n\n").lstrip()
        written += len(page)
        yield page


def around(lines: tuple[str, ...], sentences: list[str], count: int, chance: random.Random) -> str:
    """What stands before or between the lists: one of the lines, and up to three sentences of no matter."""
    text = [chance.choice(sentences) for _ in range(chance.choice((0, 0, 1, 2, 3)))]
    line = chance.choice(lines).format(number=chance.randint(1, 99), count=count)
    text.insert(chance.randint(0, len(text)), line)
    return chance.choice((" ", "\n", "\n\n")).join(filter(None, text))


def main() -> None:
    """Write everything."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("data", type=Path, help="folder of real data")
    options.add_argument("out", type=Path, help="folder to write into")
    options.add_argument("--strict", action="store_true", help="no page asks for a word that is held out")
    chosen = options.parse_args()
    data, out = chosen.data, chosen.out
    chance, sentences = random.Random(1), tatoeba(data)
    documents = [*articles(data), *("\n".join(chance.sample(sentences, 20)) for _ in range(LOOSE_PAGES))]
    kinds = Counter(articles_and_sentences=len(documents))
    documents += workbook(sentences, headwords(data), chance, chosen.strict)
    kinds["workbook pages"] = len(documents) - kinds["articles_and_sentences"]
    chance.shuffle(documents)
    out.mkdir(parents=True, exist_ok=True)
    rows = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
    (out / "simple_english.jsonl").write_text("".join(rows), encoding="utf-8")
    sys.stdout.write(f"{out / 'simple_english.jsonl'}: {dict(kinds)}\n")
    words = str(data / "cefr/a1_examples_en_tr.tsv")
    lists = ["data", "list-format", words, "--out", str(out / "lists"), "--overwrite"]
    subprocess.run([sys.executable, "-c", "from mm_rec.cli.main import main; main()", *lists], check=True)


if __name__ == "__main__":
    main()
