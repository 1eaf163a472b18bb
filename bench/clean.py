"""Cleaning speed: our rules against datatrove's filters, on the same Turkish documents, one core.

    python bench/clean.py [--quick] [--rounds 5] [--megabytes 4]

The rules that both run offline, with equal limits and stop words: C4 (lines, sentences), Gopher quality, Gopher
repetition, FineWeb quality; datatrove's filter functions are called directly, without its reading and writing. A
second row times ours alone with everything that `mmrec data clean` does, language identification (datatrove's needs a
model from a hub) included and apart. `same_decision` is the share of documents that both keep or both drop.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import protocol
import text_data


def ours(documents: list[str]) -> tuple[float, list[bool]]:
    """Seconds for all documents, and which were kept."""
    from mm_rec.cleaning.lines import LineConfig
    from mm_rec.cleaning.steps import Cleaner, CleaningConfig, resolve_cleaning

    config = CleaningConfig(
        markup=False,
        identification={"identify": False},
        personal=False,
        lines=LineConfig(
            terminal_punctuation=True, min_words=3, javascript=True, menus=False, repeated=False
        ),
        published_limits=True,
        rules={
            "c4_curly_brackets": {"active": True},
            "gopher_many_words": {"active": True},
            "digits": {"active": False},  # these two are ours alone
            "word_characters": {"active": False},
        },
    )
    cleaner = Cleaner(resolve_cleaning(config))
    del cleaner.steps[0]  # normalise: datatrove has no such step among these
    cleaner.clean(documents[0])
    start = time.process_time()
    kept = [cleaner.clean(text)[1] is None for text in documents]
    return time.process_time() - start, kept


def whole(documents: list[str], identify: bool) -> float:
    """Seconds for all that `mmrec data clean` does to a document, with or without language identification."""
    from mm_rec.cleaning.steps import Cleaner, CleaningConfig, resolve_cleaning

    cleaner = Cleaner(resolve_cleaning(CleaningConfig(identification={"identify": identify})))
    cleaner.clean(documents[0])
    start = time.process_time()
    for text in documents:
        cleaner.clean(text)
    return time.process_time() - start


def datatrove(documents: list[str]) -> tuple[float, list[bool]]:
    """The same for datatrove's filters, in the order in which ours run."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.utils.typeshelper import Languages

    from mm_rec.text.languages import get_language

    turkish = Languages.turkish
    filters = (
        C4QualityFilter(language=turkish),
        # It counts punctuation marks as words; with the paper's 0.8 it would leave out two thirds of good Turkish.
        GopherQualityFilter(
            language=turkish, stop_words=sorted(get_language("tr").stop_words), max_non_alpha_words_ratio=0.65
        ),
        FineWebQualityFilter(language=turkish),
        GopherRepetitionFilter(language=turkish),
    )

    def keep(text: str) -> bool:
        document = Document(text=text, id="")
        for step in filters:
            result = step.filter(document)
            if not (result[0] if isinstance(result, tuple) else result):
                return False
        return True

    keep(documents[0])
    start = time.process_time()
    kept = [keep(text) for text in documents]
    return time.process_time() - start, kept


def child(contender: str, megabytes: float, out: Path) -> None:
    """Run one contender in this process and hand over its figures."""
    documents = text_data.turkish_documents(megabytes)
    size = text_data.size_mb(documents)
    seconds, kept = (ours if contender == "mm-rec" else datatrove)(documents)
    result: dict[str, Any] = {"mb_per_second": round(size / seconds, 3), "kept": sum(kept)}
    out.write_text(json.dumps(kept), encoding="utf-8")
    if contender == "mm-rec":
        everything, without = whole(documents, identify=True), whole(documents, identify=False)
        result["everything_mb_per_second"] = round(size / everything, 2)
        result["without_language_mb_per_second"] = round(size / without, 2)
    protocol.child_result({**result, "peak_mb": round(protocol.peak_mb())})


def main() -> None:
    """Compare, or be a contender (`--child`)."""
    options = protocol.parser(__doc__)
    options.add_argument("--megabytes", type=float, default=4.0)
    options.add_argument("--child", nargs=3, metavar=("CONTENDER", "MEGABYTES", "OUT"))
    chosen = options.parse_args()
    if chosen.child:
        contender, megabytes, out = chosen.child
        child(contender, float(megabytes), Path(out))
        return
    text_data.require_datatrove()
    megabytes = 1.0 if chosen.quick else chosen.megabytes
    documents = text_data.turkish_documents(megabytes)
    with tempfile.TemporaryDirectory() as folder:

        def contender(name: str) -> Any:
            arguments = ["--child", name, str(megabytes), str(Path(folder) / name)]
            return lambda: protocol.run_child(__file__, arguments, timeout=600)

        facts = {
            "megabytes": round(text_data.size_mb(documents), 2),
            "documents": len(documents),
            "cores": 1,
        }
        rounds = 1 if chosen.quick else chosen.rounds
        peers = {"datatrove": contender("datatrove")}
        results = protocol.compare("clean", contender("mm-rec"), peers, rounds, "mb_per_second", facts)
        mine, theirs = (json.loads((Path(folder) / name).read_text()) for name in ("mm-rec", "datatrove"))
    same = sum(a == b for a, b in zip(mine, theirs, strict=True)) / len(documents)
    last = {name: value for name, value in results["mm-rec"][-1].items() if name.endswith("mb_per_second")}
    row = {"same_decision": round(same, 3), "ours_kept": sum(mine), "peer_kept": sum(theirs), **last}
    print(json.dumps({"bench": "clean", "peer": "datatrove", **row}))


if __name__ == "__main__":
    main()
