"""How long ours and others train until they are equally good: seconds to the same bits a byte of held-out books.

    python bench/time_to_quality.py [--contender NAME …] [--seconds 300] [--rates CONTENDER=RATE,RATE,…]
        [--nanochat DIR] [--quick]
    python bench/time_to_quality.py --report          the table and the picture of all cells that there are

Width 256, 4 layers, vocabulary 4,096, rows of 512 tokens, 4,096 tokens a step, English books of which every twentieth
is held out whole (arena.py); all read the same rows with the same tokenizer. The clock runs from before torch is
imported until the last step; evaluations are taken out, compilation is not, and every process begins with empty caches
of compiled code. Each contender runs in a process of its own. Its step and start-up times are measured first, on steps
of their own; a budget of seconds is then a number of steps, at the last of which its schedule ends, and what counts is
the seconds that they really took. Each has the same number of rates to try, with a fifth of the steps each.

`mm-rec`: our loop on the memory layers, Muon, compiled, in the best dtype. `llama`: the same on the twin of as many
parameters. `transformers-default`: transformers.Trainer on that twin by its defaults (float32, AdamW, linear schedule).
`transformers-compiled`: the same with torch_compile, and bf16 where the processor has it.
`nanochat`: depth 4, from a checkout of https://github.com/karpathy/nanochat (--nanochat; commit 437943bd, of which
nanochat/gpt.py, optim.py, common.py and flash_attention.py are needed). The loop follows its scripts/base_train.py:
Muon and AdamW, rates by the square root of the batch, weight decay by batch and size, 40 steps of warm-up, warm-down
over 65 % to a twentieth, momentum 0.85 → 0.97 → 0.90. A rate is its --matrix-lr; the others of its rates keep their
proportions to it. Adapted to a processor: NANOCHAT_DTYPE is bfloat16 where ours is (its own default there is float32).
It has more parameters: untied embeddings, and value embeddings.

Ours for --seconds gives a quality; a peer first gets as many times the seconds as the goal says (1 for `llama`, 2.5 and
1.5 for the Trainers); where it is then as good it gets fewer, each a run of its own. nanochat trains 600 steps, by its
default rate and by its best, and ours gets a third and more of the seconds that this took, until it is as good as the
best. Cells are in bench/time_to_quality/ISA/, and a cell that is there is not run again.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import protocol
from arena import HELD_OUT_BYTES, ROWS, SEQ_LEN, documents, first_bytes, prepare
from arms import WIDE, config_of
from train_throughput import fit, new_llama, precision, require_accelerate, trainer

FOLDER = Path(__file__).resolve().parent / "time_to_quality"  # a folder in it for each kind of processor
NANOCHAT_RATE = 0.02  # its default, which is for far larger batches
RATES = {  # around the best of short looks
    "mm-rec": (4e-3, 8e-3, 16e-3),
    "llama": (8e-3, 16e-3, 32e-3),
    "transformers-default": (1e-3, 2e-3, 4e-3),
    "transformers-compiled": (1e-3, 2e-3, 4e-3),
    "nanochat": (NANOCHAT_RATE, 0.04, 0.08),
}
ARMS = {"mm-rec": "mmrec", "llama": "llama"}  # of our loop
GOALS = {"llama": 1, "transformers-default": 2.5, "transformers-compiled": 1.5}  # of our seconds, for a peer
TIMES = (0.75, 1, 1.5, 2)  # where it is as good then
SHARES = (0.33, 0.5, 0.75, 1)  # of nanochat's seconds, for ours
NANOCHAT_STEPS = 600
TRIAL = 5  # a trial of a rate has so-manyth of the steps
WARM_UP, TIMED = 5, 30  # steps of a measurement of speed
POINTS = 4  # evaluations of a run
SEED = 1
Logits = Callable[[Any], Any]  # token ids (B, T) → logits (B, T, V)
Cell = dict[str, Any]


class Watch(protocol.Clock):
    """The training time of a run in seconds: `ends` of its steps and a curve of bits a byte, evaluations taken out."""

    def __init__(self, points: set[int], tokenizer: Path, most_bytes: int) -> None:
        super().__init__()
        self.start = time.perf_counter()
        self.points, self.tokenizer, self.most_bytes = points, tokenizer, most_bytes
        self.curve: list[tuple[float, float]] = []
        self.logits: Logits = lambda ids: None
        self.parameters = 0

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        """A step ended."""
        now = time.perf_counter()
        self.ends.append(now - self.start)
        if step in self.points:
            bits = bits_per_byte(self.logits, self.tokenizer, self.most_bytes)
            self.curve.append((round(self.ends[-1], 2), round(bits, 5)))
            self.start += time.perf_counter() - now


def bits_per_byte(logits: Logits, tokenizer_folder: Path, most_bytes: int) -> float:
    """Of the held-out books, by the rule of mm_rec/evaluation/perplexity.py, for any function that gives logits."""
    import torch

    from mm_rec.tokenizers.loading import encode_documents, load_tokenizer

    texts = [text[:most_bytes] for text in first_bytes(documents("en", True), most_bytes)]
    windows = [
        torch.from_numpy(ids[start : min(start + SEQ_LEN, len(ids) - 1)]).long()  # without the closing eos
        for ids in encode_documents(load_tokenizer(tokenizer_folder), texts)
        for start in range(0, len(ids) - 2, SEQ_LEN - 1)
    ]
    nats = 0.0
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for first in range(0, len(windows), ROWS):
            group = windows[first : first + ROWS]
            ids, labels = torch.zeros(ROWS, SEQ_LEN).long(), torch.full((ROWS, SEQ_LEN), -100)
            for row, window in enumerate(group):
                ids[row, : len(window)] = window
                labels[row, : len(window) - 1] = window[1:]
            out = logits(ids).float().flatten(0, 1)
            nats += float(torch.nn.functional.cross_entropy(out, labels.flatten(), reduction="sum"))
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def follow(watch: Watch, model: Any, dtype: Any) -> Any:
    """Let the watch evaluate a model of transformers, matrix products in this dtype; returns the model."""
    import torch

    def logits(ids: Any) -> Any:
        model.eval()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            out = model(input_ids=ids, use_cache=False).logits
        model.train()
        return out

    watch.logits, watch.parameters = logits, model.num_parameters()
    return model


def train_ours(watch: Watch, arm: str, tokens: Path, rate: float, steps: int) -> None:
    """Our loop, as the arena runs it."""
    from mm_rec.models.presets import build
    from mm_rec.training.section import ResolvedTrainSection

    section = ResolvedTrainSection(
        steps=steps, seq_len=SEQ_LEN, batch_size=ROWS, learning_rate=rate, optimizer="muon", compile=True,
        warmup_steps=max(1, steps // 20), checkpoint_every=10**9, checkpoint_minutes=10**6, seed=SEED,
    )  # fmt: skip
    model = follow(watch, build(config_of(arm, WIDE), seed=SEED), precision())
    with tempfile.TemporaryDirectory() as run:
        fit(model, batches_of(tokens), section, Path(run), watch)


def batches_of(tokens: Path) -> Any:
    """The steps' rows in our seeded order."""
    from mm_rec.data.batches import corpus_batches
    from mm_rec.data.corpus import Corpus

    return corpus_batches(Corpus.open(tokens), SEQ_LEN, ROWS, seed=SEED)


def train_transformers(watch: Watch, tuned: bool, tokens: Path, rate: float, steps: int) -> None:
    """transformers.Trainer."""
    import torch

    model = follow(watch, new_llama(config_of("llama", WIDE)), precision() if tuned else torch.float32)
    with tempfile.TemporaryDirectory() as run:
        trainer(model, tokens, steps, Path(run), tuned, rate, watch)


def train_nanochat(watch: Watch, checkout: Path, tokens: Path, rate: float, steps: int) -> None:
    """nanochat's model and optimizer in a loop that follows its scripts/base_train.py; its figures are its defaults."""
    import torch

    os.environ.setdefault("NANOCHAT_DTYPE", str(precision()).removeprefix("torch."))
    sys.path.insert(0, str(checkout))
    gpt = importlib.import_module("nanochat.gpt")

    def new_model(depth: int, device: str) -> Any:
        heads = depth // 2  # 64 of width for a layer, 128 for a head
        return gpt.GPT(gpt.GPTConfig(SEQ_LEN, WIDE.vocabulary, depth, heads, heads, 64 * depth), device)

    def scaling_parameters(model: Any) -> int:
        counts = model.num_scaling_params()
        return int(counts["transformer_matrices"] + counts["lm_head"])

    torch.manual_seed(42)
    model = new_model(WIDE.layers, "cpu")
    watch.logits, watch.parameters = model.forward, sum(one.numel() for one in model.parameters())
    forward = torch.compile(model.forward, dynamic=False)
    by_batch = math.sqrt(ROWS * SEQ_LEN / 2**19)
    by_size = scaling_parameters(new_model(12, "meta")) / scaling_parameters(model)
    scale, decay = by_batch * rate / NANOCHAT_RATE, 0.28 * by_batch * by_size
    optimizer = model.setup_optimizer(
        unembedding_lr=0.008 * scale, embedding_lr=0.3 * scale, scalar_lr=0.5 * scale, matrix_lr=0.02 * scale,
        weight_decay=decay,
    )  # fmt: skip
    batches = batches_of(tokens)
    for step in range(steps):
        batch = batches.batch_at(step)
        targets = batch["labels"].roll(-1, 1)
        targets[:, -1] = -1
        forward(batch["input_ids"], targets.masked_fill(targets < 0, -1)).backward()
        share, momentum = nanochat_schedule(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share
            if group["kind"] == "muon":
                group["momentum"] = momentum
                group["weight_decay"] = decay * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.step()
        optimizer.zero_grad()
        watch.progress(step + 1, steps, {})
        if step == 0:
            gc.collect()
            gc.freeze()
            gc.disable()


def nanochat_schedule(step: int, steps: int) -> tuple[float, float]:
    """The share of the peak rate, and Muon's momentum."""
    falling = round(0.65 * steps)
    progress = max(0.0, (step - (steps - falling)) / falling)
    share = (step + 1) / 40 if step < 40 else 1 - 0.95 * progress
    momentum = 0.85 + 0.12 * step / 400 if step < 400 else 0.97 - 0.07 * progress
    return share, momentum


def child(arguments: list[str]) -> None:
    """Train one contender in this process and hand over its figures."""
    contender, rate, steps, points, most_bytes, tokenizer, tokens, checkout = arguments
    count, at = int(steps), int(points)
    watch = Watch({round(count * k / at) for k in range(1, at + 1)}, Path(tokenizer), int(most_bytes))
    if contender in ARMS:
        train_ours(watch, ARMS[contender], Path(tokens), float(rate), count)
    elif contender == "nanochat":
        train_nanochat(watch, Path(checkout), Path(tokens), float(rate), count)
    else:
        train_transformers(watch, contender.endswith("compiled"), Path(tokens), float(rate), count)
    warm = watch.ends[WARM_UP - 1 :]
    step = statistics.median(after - before for before, after in itertools.pairwise(warm))
    protocol.child_result(
        {
            "seconds": round(watch.ends[-1], 2),
            "startup_seconds": round(warm[0] - WARM_UP * step, 2),
            "step_seconds": round(step, 4),
            "bits_per_byte": watch.curve[-1][1] if watch.curve else None,
            "curve": watch.curve,
            "parameters": watch.parameters,
            "dtype": "float32" if contender.endswith("default") else str(precision()).removeprefix("torch."),
        }
    )


def cell(
    folder: Path, part: str, contender: str, rate: float, steps: int, points: int, checkout: str,
    most_bytes: int = HELD_OUT_BYTES, empty_caches: bool = True, **facts: Any,
) -> Cell:  # fmt: skip
    """The figures of a cell: those that are there, or those of a training in a process of its own."""

    def make() -> Cell:
        from mm_rec import cpu

        data = map(str, prepare("en", WIDE.vocabulary))
        arguments = [
            "--child",
            contender,
            str(rate),
            str(steps),
            str(points),
            str(most_bytes),
            *data,
            checkout,
        ]
        with tempfile.TemporaryDirectory() as empty:
            caches = {"XDG_CACHE_HOME": empty, "TORCHINDUCTOR_CACHE_DIR": f"{empty}/inductor"}
            settings = caches if empty_caches else None
            figures = protocol.run_child(__file__, arguments, timeout=6 * 3600, settings=settings)
        return {
            "part": part, "contender": contender, "learning_rate": rate, "steps": steps,
            "tokens": steps * ROWS * SEQ_LEN, **facts, **figures, "threads": os.cpu_count(),
            "processor": cpu.describe(), "isa": cpu.vector_isa(), "date": time.strftime("%Y-%m-%d"),
            "commit": protocol.commit(),
        }  # fmt: skip

    return protocol.kept(folder / f"{part}-{contender}-rate{rate:g}-{steps}steps.json", make)


def run(folder: Path, seconds: float, rates: dict[str, tuple[float, ...]], checkout: str) -> None:
    """All cells: speeds, trials of rates, the peers against our quality, ours against nanochat's."""
    names = [name for name in rates if checkout or name != "nanochat"]
    pace = {name: cell(folder, "speed", name, rates[name][1], WARM_UP + TIMED, 0, checkout) for name in names}

    def steps_in(name: str, limit: float) -> int:
        fit_in = (limit - pace[name]["startup_seconds"]) / pace[name]["step_seconds"]
        return max(2 * WARM_UP, int(fit_in))

    best = {}
    for name in names:
        whole = NANOCHAT_STEPS if name == "nanochat" else steps_in(name, seconds)
        best[name] = best_rate(folder, name, rates[name], max(2 * WARM_UP, whole // TRIAL), checkout)

    def trained(part: str, name: str, limit: float, **facts: Any) -> Cell:
        return cell(folder, part, name, best[name], steps_in(name, limit), POINTS, checkout, **facts)

    goal = trained("quality", "mm-rec", seconds, budget=seconds, times=1)["bits_per_byte"]

    def reaches(peer: str, times: float) -> bool:
        done = trained("quality", peer, times * seconds, budget=seconds, times=times)
        return bool(done["bits_per_byte"] <= goal)

    for peer, most in GOALS.items():
        if peer in names and reaches(peer, most):
            any(reaches(peer, times) for times in TIMES if times < most)
    if "nanochat" not in names:
        return
    theirs = [
        cell(folder, "nanochat", "nanochat", rate, NANOCHAT_STEPS, POINTS, checkout, times=1)
        for rate in dict.fromkeys((NANOCHAT_RATE, best["nanochat"]))
    ]
    for share in SHARES:
        done = trained("nanochat", "mm-rec", share * theirs[0]["seconds"], times=share)
        if done["bits_per_byte"] <= min(one["bits_per_byte"] for one in theirs):
            break


def best_rate(folder: Path, name: str, rates: tuple[float, ...], steps: int, checkout: str) -> float:
    """The rate with the fewest bits a byte in short runs; says so where it is the lowest or the highest."""
    bits = {rate: cell(folder, "trial", name, rate, steps, 1, checkout)["bits_per_byte"] for rate in rates}
    best = min(bits, key=lambda rate: bits[rate] if math.isfinite(bits[rate]) else math.inf)
    if best in (min(rates), max(rates)):
        print(f"{name}: {best:g} is at the end of the rates tried; see --rates", file=sys.stderr, flush=True)
    return best


def quick(folder: Path, checkout: str) -> None:
    """A few steps of each contender and a little text, with what is in the caches; the figures mean nothing."""
    for name, rates in RATES.items():
        if checkout or name != "nanochat":
            part = "nanochat" if name == "nanochat" else "quality"
            facts = {"budget": 0, "times": 1}
            cell(folder, part, name, rates[1], WARM_UP + 2, 1, checkout, 20_000, empty_caches=False, **facts)


def cells_of(folder: Path, part: str, budget: float | None) -> list[Cell]:
    """The runs of a part, the one to compare with first, then by contender and seconds; of one budget if given."""
    found = [json.loads(path.read_text("utf-8")) for path in folder.glob(f"{part}-*.json")]
    if budget is not None:
        found = [one for one in found if one["budget"] == budget]
    first = "nanochat" if part == "nanochat" else "mm-rec"

    def order(one: Cell) -> tuple[Any, ...]:
        return one["contender"] != first, one["contender"], one["learning_rate"], one["times"]

    return sorted(found, key=order)


def report(folder: Path, seconds: float) -> None:
    """JSON lines of the comparisons, a Markdown table of all runs, and curves.png."""
    parts = {"quality": cells_of(folder, "quality", seconds), "nanochat": cells_of(folder, "nanochat", None)}
    table = ["| contender | parameters | rate | seconds (start-up) | steps | bits a byte | time | as good |"]
    table.append("|---|---|---|---|---|---|---|---|")
    for part, cells in parts.items():
        if cells:
            compare(part, cells, table)
    print("\n".join(["", *table]))
    if any(parts.values()):
        draw(folder, parts)


def compare(part: str, cells: list[Cell], table: list[str]) -> None:
    """A line of JSON for each contender against the first cell, and a row for each cell; time is relative to it."""
    goal = cells[0]
    for one in cells:
        time_ratio, good = one["seconds"] / goal["seconds"], one["bits_per_byte"] <= goal["bits_per_byte"]
        table.append(
            f"| {one['contender']} | {one['parameters']:,} | {one['learning_rate']:g} | {one['seconds']:.0f} "
            f"({one['startup_seconds']:.0f}) | {one['steps']:,} | {one['bits_per_byte']:.4f} | {time_ratio:.2f} | "
            f"{'the goal' if one is goal else 'yes' if good else 'no'} |"
        )
    for name, runs in itertools.groupby(cells[1:], key=lambda one: one["contender"]):
        tried = list(runs)
        enough = [one for one in tried if one["bits_per_byte"] <= goal["bits_per_byte"]]
        least = min(enough or tried, key=lambda one: one["seconds"] if enough else -one["seconds"])
        row = {
            "bench": "time_to_quality", "part": part, "contender": name, "against": goal["contender"],
            "ratio": f"{'' if enough else '> '}{least['seconds'] / goal['seconds']:.2f}",
            "seconds": least["seconds"], "against_seconds": goal["seconds"],
            "bits_per_byte": least["bits_per_byte"], "goal": goal["bits_per_byte"],
            "threads": goal["threads"], "processor": goal["processor"],
        }  # fmt: skip
        print(json.dumps(row), flush=True)


def draw(folder: Path, parts: dict[str, list[Cell]]) -> None:
    """A panel a part: seconds against bits a byte, a line for each run."""
    from matplotlib.figure import Figure

    made = {part: cells for part, cells in parts.items() if cells}
    figure = Figure(figsize=(5 * len(made), 4.5), layout="constrained")
    colours = dict(zip(RATES, ("C0", "C1", "C2", "C3", "C4"), strict=True))
    panels = figure.subplots(1, len(made), squeeze=False)[0]
    for panel, (part, cells) in zip(panels, made.items(), strict=True):
        named: set[str] = set()
        for one in cells:
            name = one["contender"]
            panel.plot(
                *zip(*one["curve"], strict=True), "o-", color=colours[name], markersize=3, linewidth=1,
                label=None if name in named else name,
            )  # fmt: skip
            named.add(name)
        panel.axhline(cells[0]["bits_per_byte"], color="grey", linewidth=0.8, linestyle="--")
        panel.legend(fontsize=8)
        title = {
            "quality": "as good as ours",
            "nanochat": f"as good as nanochat after {NANOCHAT_STEPS} steps",
        }
        panel.set_title(title[part], fontsize=9)
        panel.set_xlabel("seconds, compilation in, evaluations out")
        panel.set_ylabel("bits a byte, held-out books")
    figure.savefig(folder / "curves.png", dpi=110)


def rates_of(chosen: list[str]) -> dict[str, tuple[float, ...]]:
    """The rates to try: those of the command line in place of ours; ends the program where one cannot be read."""
    rates = dict(RATES)
    for text in chosen:
        name, _, values = text.partition("=")
        try:
            given = tuple(map(float, values.split(",")))
        except ValueError:
            given = ()
        if name not in rates or len(given) < 2:
            sys.exit(f"--rates {text}: write CONTENDER=RATE,RATE with one of {', '.join(rates)}")
        rates[name] = given
    if len(set(map(len, rates.values()))) > 1:
        sys.exit(
            "each contender gets the same number of rates: give --rates for all, or as many as the others have"
        )
    return rates


def main() -> None:
    """Run cells and report them, or be one (`--child`)."""
    options = protocol.parser(__doc__)
    options.add_argument("--contender", choices=RATES, action="append", help="these alone, beside mm-rec")
    options.add_argument("--seconds", type=float, default=300, help="our budget (default: 300)")
    options.add_argument("--rates", action="append", default=[], metavar="CONTENDER=RATE,RATE,…")
    options.add_argument("--nanochat", type=Path, metavar="DIR", help="a checkout of nanochat")
    options.add_argument("--report", action="store_true")
    options.add_argument("--child", nargs=8, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.child:
        child(chosen.child)
        return
    if chosen.report:
        for folder in sorted(FOLDER.iterdir()):
            print(f"\n{folder.name}\n")
            report(folder, chosen.seconds)
        return
    require_accelerate()
    checkout = str(chosen.nanochat.resolve()) if chosen.nanochat else ""
    if not checkout:
        print("nanochat is left out: name a checkout of it with --nanochat DIR", file=sys.stderr)
    elif not (Path(checkout) / "nanochat" / "gpt.py").is_file():
        sys.exit(f"{checkout} is no checkout of nanochat: nanochat/gpt.py is not there")
    if chosen.quick:
        with tempfile.TemporaryDirectory() as folder:
            quick(Path(folder), checkout)
            report(Path(folder), 0)
    else:
        from mm_rec import cpu

        folder, rates = FOLDER / cpu.vector_isa(), rates_of(chosen.rates)
        wanted = {"mm-rec", *(chosen.contender or rates)}
        run(folder, chosen.seconds, {name: rates[name] for name in rates if name in wanted}, checkout)
        report(folder, chosen.seconds)


if __name__ == "__main__":
    main()
