"""Does cleaning help? Two tiny models read as many tokens of noisy Turkish, one raw and one cleaned.

    python bench/clean_helps.py [--quick] [--tokens 3000000] [--seeds 1]

The noisy text: a blog and two sets of technical documentation, Markdown with front matter, code, boilerplate and
machine translation. A twentieth of the documents is held out by hash; of these, what is left after cleaning and what
does not repeat the training text is the clean validation text. Each model has a tokenizer of its own text, so they
are compared in bits a byte. Bits a byte on Turkish prose of other sources (a speech, Wikipedia) is told beside it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import protocol
from rich.console import Console

NOISY = ("daron_blog", "msdocs_powerbi", "msdocs_visualstudio_mt")
OTHER = ("nutuk_vol1.txt", "wiki_ner_sentences.txt")
HELD_OUT = 0.05


def split(folder: Path, out: Path) -> tuple[Path, Path]:
    """The noisy documents in two files, training and held out."""
    from mm_rec.data.split import document_hash
    from mm_rec.sources.documents import read_documents
    from mm_rec.sources.writers import row_writer

    train, held = out / "raw_train.jsonl", out / "raw_held.jsonl"
    with row_writer(train) as write_train, row_writer(held) as write_held:
        for document in read_documents([folder / f"{name}.jsonl" for name in NOISY]):
            write = write_held if document_hash(document.text) < HELD_OUT else write_train
            write({"text": document.text})
    return train, held


def bits_per_byte(model: Path, text: Path) -> float:
    """Of a model on the documents of a file."""
    from mm_rec.evaluation.perplexity import evaluate_text
    from mm_rec.models.loading import load_model
    from mm_rec.sources.documents import read_documents
    from mm_rec.tokenizers.loading import load_tokenizer

    texts = [document.text for document in read_documents([text], documents="blank-line")][:400]
    return evaluate_text(load_model(model), load_tokenizer(model), texts, 256).bits_per_byte


def train(text: Path, tokens: int, seed: int, run: Path) -> Path:
    """A tiny model trained on a text; returns its folder."""
    from mm_rec.pipeline.recipe import recipe_of
    from mm_rec.pipeline.run import run_stage
    from mm_rec.progress import RichReporter

    stage = {
        "kind": "pretrain",
        "data": {"sources": [str(text)], "documents": "blank-line"},
        "tokenizer": {"vocab_size": 4000},
        "model": {"size": "tiny"},
        "tokens": tokens,
    }
    recipe = recipe_of({"seed": seed, "stages": [stage]})
    with RichReporter(Console(stderr=True, highlight=False)) as reporter:
        return run_stage(recipe, run, reporter).run / "final"


def main() -> None:
    """Clean, train both for each seed, and print one line a seed."""
    options = protocol.parser(__doc__)
    options.add_argument("--tokens", type=int, default=3_000_000)
    options.add_argument("--seeds", type=int, default=1)
    chosen = options.parse_args()
    tokens, seeds = (60_000, 1) if chosen.quick else (chosen.tokens, chosen.seeds)
    folder = (
        Path(__file__).resolve().parent.parent / os.environ.get("MMREC_TEST_DATA", "../shared/data") / "tr"
    )
    if not folder.is_dir():
        sys.exit(f"{folder} is absent; set MMREC_TEST_DATA to the folder of real test data")
    from mm_rec.cleaning.corpus import CorpusConfig, clean_corpus

    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        raw, held = split(folder, work)
        cleaned = clean_corpus([raw], work / "clean_train.jsonl", CorpusConfig())
        validation = work / "clean_held.jsonl"
        clean_corpus([held], validation, CorpusConfig(earlier=[str(cleaned.report)]))
        total = cleaned.stats.total()
        facts = {
            "raw_mb": round(total.read.bytes / 1e6, 1),
            "clean_mb": round(total.kept.bytes / 1e6, 1),
            "tokens": tokens,
        }
        for seed in range(seeds):
            models = {
                name: train(text, tokens, seed, work / f"{name}-{seed}")
                for name, text in (("raw", raw), ("clean", cleaned.out))
            }
            row = {
                f"{name}_{test.split('.')[0]}": round(bits_per_byte(model, path), 4)
                for name, model in models.items()
                for test, path in (("held", validation), *((other, folder / other) for other in OTHER))
            }
            print(json.dumps({"bench": "clean_helps", "seed": seed, **facts, **row}), flush=True)


if __name__ == "__main__":
    main()
