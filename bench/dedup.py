"""Near-duplicates: our fingerprints and LSH against datatrove's MinHash pipeline, same documents, one core.

    python bench/dedup.py [--quick] [--rounds 5] [--megabytes 6] [--quality]

Runs of five words; ours has 16 bands of 8 hashes, datatrove its own 14 of 8. Of every tenth document an edited copy is
planted (1 to 30 % of its words replaced). Both start from documents in memory and end with the numbers of those to
leave out. `--quality` prints, without the peer, how many planted copies of each strength are found, false alarms
among unrelated documents, and what is said of the three versions of OneStopEnglish's articles.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import protocol
import text_data

if TYPE_CHECKING:
    from mm_rec.cleaning.dedup import DedupConfig

SHARES = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3)


def edited(text: str, share: float, chance: random.Random) -> str:
    """The text with a share of its words replaced by others of its own."""
    words = text.split(" ")
    for place in chance.sample(range(len(words)), max(1, round(share * len(words)))):
        words[place] = chance.choice(words)[::-1]
    return " ".join(words)


def planted(documents: list[str], every: int = 10) -> tuple[list[str], dict[int, tuple[int, float]]]:
    """The documents and edited copies of some at the end; copy → (original, share of words replaced)."""
    chance = random.Random(0)
    copies: dict[int, tuple[int, float]] = {}
    result = list(documents)
    for number in range(0, len(documents), every):
        if len(documents[number].split()) >= 50:
            share = SHARES[len(copies) % len(SHARES)]
            copies[len(result)] = (number, share)
            result.append(edited(documents[number], share, chance))
    return result, copies


def ours(documents: list[str]) -> list[int]:
    """Numbers of the documents to leave out."""
    from mm_rec.cleaning.dedup import DedupConfig, Fingerprints, compute_fingerprints, find_duplicates

    config = DedupConfig(paragraphs=False, keep="first")
    parts = [
        compute_fingerprints(documents[start : start + 1000], "tr", config)
        for start in range(0, len(documents), 1000)
    ]
    return [duplicate.document for duplicate in find_duplicates(Fingerprints.join(parts), config)]


def datatrove(documents: list[str]) -> list[int]:
    """The same by datatrove's four steps."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.typeshelper import Languages

    def rows() -> list[Document]:
        return [Document(text=text, id=str(number)) for number, text in enumerate(documents)]

    config = MinhashConfig()
    with tempfile.TemporaryDirectory() as folder:
        MinhashDedupSignature(f"{folder}/sigs", config, language=Languages.turkish).run(iter(rows()))
        for bucket in range(config.num_buckets):
            MinhashDedupBuckets(f"{folder}/sigs", f"{folder}/buckets", config=config).run(
                None, bucket, config.num_buckets
            )
        MinhashDedupCluster(f"{folder}/buckets", f"{folder}/remove", config=config).run(None)
        kept = {int(document.id) for document in MinhashDedupFilter(f"{folder}/remove").run(iter(rows()))}
    return [number for number in range(len(documents)) if number not in kept]


def child(contender: str, megabytes: float) -> None:
    """Run one contender in this process and hand over its figures."""
    documents, copies = planted(text_data.turkish_documents(megabytes))
    find = ours if contender == "mm-rec" else datatrove
    find(documents[:20])  # loads what there is to load
    wall, start = time.perf_counter(), time.process_time()
    left_out = set(find(documents))
    seconds = time.process_time() - start
    weak = [copy for copy, (_, share) in copies.items() if share <= 0.02]
    protocol.child_result(
        {
            "mb_per_second": round(text_data.size_mb(documents) / seconds, 3),
            "wall_seconds": round(time.perf_counter() - wall, 2),
            "left_out": len(left_out),
            "planted_found": round(sum(copy in left_out for copy in weak) / len(weak), 3),
            "peak_mb": round(protocol.peak_mb()),
        }
    )


def quality(megabytes: float) -> None:
    """Precision and recall of ours on planted copies and on articles at three reading levels."""
    from mm_rec.cleaning.dedup import DedupConfig, compute_fingerprints, find_duplicates

    config = DedupConfig(paragraphs=False, keep="first")
    # Documents that are alike on their own account would blur what is measured: one of each cluster is taken.
    documents = text_data.turkish_documents(megabytes)
    own = {item.document for item in find_duplicates(compute_fingerprints(documents, "tr", config), config)}
    documents, copies = planted([text for number, text in enumerate(documents) if number not in own], every=2)
    found = {
        item.document: item.kept
        for item in find_duplicates(compute_fingerprints(documents, "tr", config), config)
    }
    for share in SHARES:
        wanted = [copy for copy, (_, strength) in copies.items() if strength == share]
        hits = sum(found.get(copy) == copies[copy][0] for copy in wanted)
        row = {"words_replaced": share, "copies": len(wanted), "found": round(hits / len(wanted), 3)}
        print(json.dumps({"bench": "dedup", "planted": row}))
    false = sum(1 for copy, kept in found.items() if copy not in copies or copies[copy][0] != kept)
    print(
        json.dumps(
            {
                "bench": "dedup",
                "left_out": len(found),
                "false": false,
                "precision": round(1 - false / len(found), 4),
            }
        )
    )
    onestop(config)


def onestop(config: DedupConfig) -> None:
    """What is left out among three versions of each article, by the exact similarity to the nearest earlier text."""
    from mm_rec.cleaning.dedup import compute_fingerprints, find_duplicates
    from mm_rec.text.ngrams import hash_ngrams, hash_words
    from mm_rec.text.normalise import dedup_key

    folder = Path(__file__).resolve().parent.parent / os.environ.get("MMREC_TEST_DATA", "../shared/data")
    with (folder / "en/onestop_english.jsonl").open(encoding="utf-8") as rows:
        texts = [json.loads(row)["text"] for row in rows]
    left_out = {item.document for item in find_duplicates(compute_fingerprints(texts, "en", config), config)}
    sets = [set(hash_ngrams(hash_words(dedup_key(text, "en").split()), 5).tolist()) for text in texts]
    nearest = [
        max((len(mine & other) / len(mine | other) for other in sets[:number]), default=0.0)
        for number, mine in enumerate(sets)
    ]
    for low, high in pairwise((0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.01)):
        chosen = [number for number, value in enumerate(nearest) if low <= value < high]
        row = {"nearest_from": low, "documents": len(chosen), "left_out": sum(n in left_out for n in chosen)}
        print(json.dumps({"bench": "dedup", "onestop": row}))


def main() -> None:
    """Compare, or be a contender (`--child`)."""
    options = protocol.parser(__doc__)
    options.add_argument("--megabytes", type=float, default=6.0)
    options.add_argument("--quality", action="store_true")
    options.add_argument("--child", nargs=2, metavar=("CONTENDER", "MEGABYTES"))
    chosen = options.parse_args()
    if chosen.child:
        child(chosen.child[0], float(chosen.child[1]))
        return
    if chosen.quality:
        quality(chosen.megabytes)
        return
    text_data.require_datatrove()
    megabytes = 1.5 if chosen.quick else chosen.megabytes
    facts = {"megabytes": megabytes, "cores": 1}
    contenders = {
        name: lambda name=name: protocol.run_child(__file__, ["--child", name, str(megabytes)], timeout=600)
        for name in ("mm-rec", "datatrove")
    }
    rounds = 1 if chosen.quick else chosen.rounds
    peers = {"datatrove": contenders["datatrove"]}
    protocol.compare("dedup", contenders["mm-rec"], peers, rounds, "mb_per_second", facts)


if __name__ == "__main__":
    main()
