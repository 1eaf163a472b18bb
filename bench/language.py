"""Language identification: accuracy on real sentences of eight languages, by length, and its speed.

    python bench/language.py [--quick]

Sentences of MMREC_TEST_DATA/lid are cut or joined to lengths from 20 to 400 characters and identified as
`mmrec data clean` does, with all its candidates. Azerbaijani is Turkish's nearest neighbour there.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path

import protocol

LANGUAGES = ("tr", "az", "en", "de", "fr", "es", "it", "nl")
LENGTHS = (20, 40, 80, 120, 200, 400)


def texts_of_length(sentences: list[str], length: int) -> list[str]:
    """Texts of about `length` characters, ended at a word: sentences are cut, or joined until they are long enough."""
    texts: list[str] = []
    text = ""
    for sentence in sentences:
        text = f"{text} {sentence}".strip()
        if len(text) >= length:
            texts.append(text[:length].rpartition(" ")[0] or text[:length])
            text = ""
    return texts


def main() -> None:
    """Print one line for each length and language."""
    from mm_rec.data.cleaning.language import LanguageConfig, identify

    chosen = protocol.parser(__doc__).parse_args()
    root = Path(__file__).resolve().parent.parent
    folder = root / os.environ.get("MMREC_TEST_DATA", "../shared/data") / "lid"
    candidates = tuple(LanguageConfig().candidates)
    for length in LENGTHS:
        right = total = 0
        for code in LANGUAGES:
            sentences = (folder / f"lingua_sentences_{code}.txt").read_text(encoding="utf-8").splitlines()
            texts = texts_of_length(sentences, length)[: 100 if chosen.quick else None]
            start = time.process_time()
            found = Counter((identify(text, candidates) or ("none", 0))[0] for text in texts)
            seconds = time.process_time() - start
            right, total = right + found[code], total + len(texts)
            wrong = {other: count for other, count in found.most_common() if other != code}
            row = {
                "length": length,
                "language": code,
                "texts": len(texts),
                "accuracy": round(found[code] / len(texts), 4),
            }
            speed = round(sum(len(text.encode()) for text in texts) / 1e6 / seconds, 2)
            print(json.dumps({"bench": "language", **row, "wrong": wrong, "mb_per_second": speed}))
        print(
            json.dumps(
                {
                    "bench": "language",
                    "length": length,
                    "language": "all",
                    "accuracy": round(right / total, 4),
                }
            )
        )


if __name__ == "__main__":
    main()
