"""Arms against each other at equal parameters, tokens, data order and tuning trials, on English and Turkish.

    python bench/arena.py ARM … [--size 2m|9m] [--language en|tr] [--seeds 3] [--quick]
    python bench/arena.py --report            the table and the picture of all cells that there are

A cell is one training of one arm (arms.py) on one language with one seed, in a process of its own at low priority;
its figures are written to bench/arena/ when it is done, and a cell that is there is not run again; one that is stopped
goes on from its last checkpoint, of each 5 minutes. First every arm
gets the same number of short trials, one for each learning rate (RATES), on a seed of their own; the best rate is
then taken for all seeds. Optimizer: Muon for matrices, AdamW for embeddings, gates and decays, cosine to a tenth.
Text: English books, Turkish documentation and laws (MMREC_TEST_DATA); every twentieth document is held out whole.
Measured: bits a byte of the held-out documents in windows of the training length; the same by position, of the first
8,192 tokens of each read at once; and the tokens a second of the training, which count only where nothing else ran.
One comparison stays on one kind of processor: cells name theirs, and a report is of one.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import protocol
import text_data
from arms import ARMS, SIZES, Size, config_of
from train_throughput import fit, precision

FOLDER = Path(__file__).resolve().parent / "arena"
# Cells of arms that are not here any more, and of what they were compared with then.
SCREENING = FOLDER / "screening"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmrec" / "arena"
RATES = {"2m": (4e-3, 8e-3, 16e-3, 32e-3), "9m": (4e-3, 8e-3, 16e-3)}  # at 2m the largest was nobody's best
SEQ_LEN, ROWS = 512, 8
TOKENS = {"2m": (2_000_000, 700_000), "9m": (8_000_000, 700_000)}  # of a cell, and of one that tries a rate
TRIAL_SEED = 100
POSITIONS = (128, 512, 2048, 8192)  # tokens: bits a byte up to each, and from the one before it
HELD_OUT, HELD_OUT_BYTES = 20, 1_500_000  # every so-manyth document, so much text at most
TEXTS = {
    "en": ("en/classic_books.jsonl",),
    "tr": ("tr/msdocs_dynamics365.jsonl", "tr/laws.jsonl", "tr/daron_blog.jsonl"),
}


def documents(language: str, held_out: bool) -> Iterator[str]:
    """Documents that are trained on, or those that are held out."""
    for name in TEXTS[language]:
        for number, text in enumerate(text_data.read_texts(text_data.folder() / name)):
            if (number % HELD_OUT == HELD_OUT - 1) == held_out:
                yield text


def first_bytes(texts: Iterable[str], most: int) -> list[str]:
    """The first document, and each after it that still fits in so many bytes."""
    chosen: list[str] = []
    left = most
    for text in texts:
        size = len(text.encode())
        if size <= left or not chosen:
            chosen.append(text)
            left -= size
    return chosen


def prepare(language: str, vocabulary: int) -> tuple[Path, Path]:
    """The tokenizer and the tokens of a language, made once; returns their folders."""
    from mm_rec.data.corpus import write_corpus
    from mm_rec.tokenizers.loading import load_tokenizer
    from mm_rec.tokenizers.training import TokenizerConfig, train_tokenizer

    folder = CACHE / f"{language}-{vocabulary}"
    if not (folder / "done").exists():
        settings = TokenizerConfig(vocab_size=vocabulary, sample_bytes=8_000_000)
        train_tokenizer(lambda: documents(language, False), settings, folder / "tokenizer")
        write_corpus(documents(language, False), load_tokenizer(folder / "tokenizer"), folder / "tokens")
        (folder / "done").touch()
    return folder / "tokenizer", folder / "tokens"


def train_cell(arm: str, size: Size, language: str, rate: float, seed: int, tokens: int) -> dict[str, Any]:
    """Train a cell and measure it."""
    from mm_rec import cpu
    from mm_rec.data.batches import corpus_batches
    from mm_rec.data.corpus import Corpus
    from mm_rec.evaluation.perplexity import evaluate_text
    from mm_rec.models.presets import build
    from mm_rec.tokenizers.loading import load_tokenizer
    from mm_rec.training.section import ResolvedTrainSection

    tokenizer_folder, corpus_folder = prepare(language, size.vocabulary)
    steps = tokens // (SEQ_LEN * ROWS)
    section = ResolvedTrainSection(
        steps=steps, seq_len=SEQ_LEN, batch_size=ROWS, learning_rate=rate, optimizer="muon", compile=True,
        warmup_steps=max(1, steps // 20), checkpoint_every=10**9, checkpoint_minutes=5, seed=seed,
    )  # fmt: skip
    model = build(config_of(arm, size), seed=seed)
    batches = corpus_batches(Corpus.open(corpus_folder), SEQ_LEN, ROWS, seed=seed)
    run = CACHE / "runs" / f"{size.hidden}-{language}-{arm}-{rate:g}-{seed}-{tokens}"
    ends, _ = fit(model, batches, section, run, resume=True)
    lengths = [after - before for before, after in itertools.pairwise(ends)]
    dtype = precision()
    texts = first_bytes(documents(language, True), HELD_OUT_BYTES)
    tokenizer = load_tokenizer(tokenizer_folder)
    scores = evaluate_text(model.eval(), tokenizer, texts, SEQ_LEN, dtype=dtype)
    positions = {} if seed == TRIAL_SEED else {"by_position": by_position(model, tokenizer, texts, dtype)}
    shutil.rmtree(run)
    return {
        **positions,
        "bits_per_byte": round(scores.bits_per_byte, 5), "loss": round(scores.loss, 5), "bytes": scores.bytes,
        "parameters": model.num_parameters(), "steps": steps, "dtype": str(dtype).removeprefix("torch."),
        "tokens_per_second": round(SEQ_LEN * ROWS / statistics.median(lengths)) if lengths else None,
        "processor": cpu.describe(), "isa": cpu.vector_isa(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def by_position(model: Any, tokenizer: Any, texts: list[str], dtype: Any) -> dict[int, float]:
    """Bits a byte of the tokens of each range of positions, in documents that are read at once."""
    import numpy as np
    import torch

    from mm_rec.evaluation.perplexity import score_tokens
    from mm_rec.tokenizers.loading import encode_documents, token_byte_lengths

    sizes = token_byte_lengths(tokenizer)
    nats, read = np.zeros(POSITIONS[-1]), np.zeros(POSITIONS[-1])
    for document in encode_documents(tokenizer, texts):
        ids = document[: POSITIONS[-1]].astype(np.int64)
        row = torch.from_numpy(ids)[None]
        losses, _ = score_tokens(model, {"input_ids": row, "labels": row}, dtype)
        nats[1 : len(ids)] += losses.double().numpy()
        read[1 : len(ids)] += sizes[ids[1:]]
    ranges = itertools.pairwise((0, *POSITIONS))
    return {
        stop: round(nats[start:stop].sum() / math.log(2) / read[start:stop].sum(), 4)
        for start, stop in ranges
        if read[start:stop].any()
    }


def cell(
    arm: str, size: str, language: str, rate: float, seed: int, tokens: int, busy: bool
) -> dict[str, Any]:
    """The figures of a cell: those that are there, or those of a training in a process of its own."""

    def make() -> dict[str, Any]:
        start = time.time()
        arguments = ["--child", arm, size, language, str(rate), str(seed), str(tokens)]
        commit = protocol.commit()
        figures = protocol.run_child(__file__, arguments, timeout=3 * 3600)
        if busy:
            figures["tokens_per_second"] = None
        facts = {
            "arm": arm,
            "size": size,
            "language": language,
            "learning_rate": rate,
            "seed": seed,
            "tokens": tokens,
        }
        return {**facts, **figures, "commit": commit, "seconds": round(time.time() - start)}

    return protocol.kept(
        FOLDER / f"{size}-{language}-{arm}-rate{rate:g}-seed{seed}-{tokens // 1000}k.json", make
    )


def run(arms: list[str], size: str, languages: list[str], seeds: int, quick: bool, busy: bool) -> None:
    """All cells of these arms: trials of every rate, then the seeds at the best one."""
    whole, trial = TOKENS[size]
    if quick:
        whole = trial = 20 * SEQ_LEN * ROWS
    for language in languages:
        best = {}
        for arm in arms:
            trials = {
                rate: cell(arm, size, language, rate, TRIAL_SEED, trial, busy)["loss"] for rate in RATES[size]
            }
            best[arm] = min(trials, key=lambda rate: trials[rate])
        for seed in range(1, seeds + 1):
            for arm in arms:
                cell(arm, size, language, best[arm], seed, whole, busy)


Cells = dict[str, list[dict[str, Any]]]  # by arm


def report(folder: Path) -> None:
    """A table in Markdown of the means with their standard errors, and arena.png."""
    groups: dict[tuple[str, str, str, int], Cells] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("*.json")):
        one = json.loads(path.read_text("utf-8"))
        if one["seed"] != TRIAL_SEED:
            groups[one["isa"], one["size"], one["language"], one["tokens"]][one["arm"]].append(one)
    for (isa, size, language, tokens), arms in groups.items():
        print(f"\n{size}, {language}, {tokens / 1e6:g} M tokens, {isa}\n")
        print("| arm | bits a byte | against llama | seeds | rate | tokens/s |\n|---|---|---|---|---|---|")
        means = {arm: mean_and_error([one["bits_per_byte"] for one in cells]) for arm, cells in arms.items()}
        for arm, (mean, error) in sorted(means.items(), key=lambda item: item[1]):
            against = f"{100 * (mean / means['llama'][0] - 1):+.2f} %" if "llama" in means else "–"
            rates = [one["tokens_per_second"] for one in arms[arm] if one["tokens_per_second"]]
            speed = f"{statistics.median(rates):,.0f}" if rates else "–"
            rate = arms[arm][0]["learning_rate"]
            print(f"| {arm} | {mean:.4f} ± {error:.4f} | {against} | {len(arms[arm])} | {rate:g} | {speed} |")
    if groups:
        draw(groups, folder)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """The mean and its standard error, which is nothing for one value."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return statistics.mean(values), error


def draw(groups: dict[tuple[str, str, str, int], Cells], folder: Path) -> None:
    """A panel for each comparison, arms by bits a byte with two standard errors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.2 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for panel, ((isa, size, language, tokens), arms) in zip(panels, groups.items(), strict=True):
        figures = {
            arm: mean_and_error([one["bits_per_byte"] for one in cells]) for arm, cells in arms.items()
        }
        names = sorted(figures, key=lambda arm: -figures[arm][0])
        means, errors = zip(*(figures[name] for name in names), strict=True)
        panel.errorbar(means, names, xerr=[2 * error for error in errors], fmt="o", capsize=3)
        panel.set_title(f"{size}, {language}, {tokens / 1e6:g} M tokens, {isa}", fontsize=9)
        panel.set_xlabel("bits a byte, two standard errors")
    figure.savefig(folder / "arena.png", dpi=110)


def main() -> None:
    """Run cells, report them, or be one (`--child`)."""
    options = protocol.parser(__doc__)
    options.add_argument("arms", nargs="*", metavar="ARM", help=", ".join(ARMS))
    options.add_argument("--size", choices=SIZES, default="2m")
    options.add_argument("--language", choices=TEXTS, action="append")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--busy", action="store_true", help="other programs run: record no rates")
    options.add_argument("--report", action="store_true")
    options.add_argument("--child", nargs=6, metavar=("ARM", "SIZE", "LANGUAGE", "RATE", "SEED", "TOKENS"))
    chosen = options.parse_args()
    if chosen.child:
        arm, size, language, rate, seed, tokens = chosen.child
        os.nice(10)
        protocol.child_result(train_cell(arm, SIZES[size], language, float(rate), int(seed), int(tokens)))
        return
    if unknown := set(chosen.arms) - ARMS.keys():
        sys.exit(f"there is no arm {sorted(unknown)[0]!r}; there are {', '.join(ARMS)}")
    if chosen.arms:
        run(chosen.arms, chosen.size, chosen.language or list(TEXTS), chosen.seeds, chosen.quick, chosen.busy)
    if chosen.report or not chosen.arms:
        for folder in (FOLDER, SCREENING):
            print(f"\n{folder}")
            report(folder)


if __name__ == "__main__":
    main()
