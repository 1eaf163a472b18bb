"""Training and decoding beside other work: what is left of the speed while other processes are busy.

    python bench/beside.py [--quick] [--busy 1] [--rounds 5] [--setting GOMP_SPINCOUNT=3000]

One process trains `tiny` (compiled, Muon, the machine's dtype, 4,096 tokens a step) and one decodes one stream with a
model of its size; each is timed alone and then beside processes that never rest. The peer of training is libgomp as it
comes (GOMP_SPINCOUNT=300000: its threads wait actively at every barrier), ours is what `mm_rec.cpu` sets; that of
decoding is one thread. Each `--setting NAME=VALUE` of the environment is another peer. The row's `ratio` is ours / peer
beside the busy processes; a line for each says what it does alone, and what share of that is left beside them.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import protocol

# libgomp's default for a team that is no larger than the machine; decoding does not use OpenMP.
PEERS = {
    "training": {"libgomp as it comes": {"GOMP_SPINCOUNT": "300000"}},
    "decoding": {"one thread": {"OMP_NUM_THREADS": "1"}},
}
ROWS, SEQ_LEN, WARM_UP = 8, 512, 8


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that never rest, on the same processors."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.3)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def training() -> tuple[Callable[[], None], int]:
    """A training step of `tiny`, and how many tokens it reads."""
    import torch

    from mm_rec.models.forward import compile_layers
    from mm_rec.models.presets import build, preset
    from mm_rec.runtime import choose_precision, disable_malloc_trim
    from mm_rec.training.objectives import next_token
    from mm_rec.training.optim import OptimizerSet
    from mm_rec.training.section import ResolvedTrainSection

    disable_malloc_trim()
    model = build(preset("tiny").config(5_000), seed=0).train()
    compile_layers(model)
    config = ResolvedTrainSection(steps=1, seq_len=SEQ_LEN, batch_size=ROWS, learning_rate=1e-3)
    optimizer = OptimizerSet(model, config)
    objective = next_token(choose_precision("auto", model.device).dtype)
    ids = torch.randint(0, 5_000, (ROWS, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids, "document_ids": torch.zeros_like(ids)}

    def step() -> None:
        summed = objective(model, batch)["loss"]
        loss, count = summed.total, summed.count
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, ROWS * SEQ_LEN


def decoding() -> tuple[Callable[[], None], int]:
    """Twenty tokens of one stream of `tiny`, by the kernels."""
    import torch

    from mm_rec.inference.native.decoder import decoder_for
    from mm_rec.models.presets import build, preset
    from mm_rec.models.states import new_state

    model = build(preset("tiny").config(5_000), seed=0).eval()
    decoder, why = decoder_for(model)
    if decoder is None:
        raise SystemExit(why)
    state = new_state(model, model.dtype, "cpu")

    @torch.inference_mode()
    def step() -> None:
        for token in range(20):
            decoder.forward([state], [[token]], [-1])

    return step, 20


def child(work: str, count: int, seconds: float) -> None:
    """Time one kind of work alone and beside; hands over tokens a second of each."""
    step, tokens = {"training": training, "decoding": decoding}[work]()
    for _ in range(WARM_UP):
        step()

    def speed() -> float:
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            step()
            done += tokens
        return done / (time.perf_counter() - start)

    alone = speed()
    with busy(count):
        beside = speed()
    protocol.child_result(
        {"alone": alone, "beside": beside, "share": beside / alone, "peak_mb": protocol.peak_mb()}
    )


def contender(
    work: str, count: int, seconds: float, settings: dict[str, str]
) -> Callable[[], dict[str, Any]]:
    """A run of a child in an environment of its own."""
    arguments = ["--child", work, str(seconds), "--busy", str(count)]
    return lambda: protocol.run_child(__file__, arguments, timeout=600, settings=settings)


def main() -> None:
    """Compare, or be a contender (`--child`)."""
    options = protocol.parser(__doc__)
    options.add_argument("--busy", type=int, default=1, help="how many other processes are busy")
    options.add_argument("--work", choices=["training", "decoding"], action="append")
    options.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="another peer")
    options.add_argument("--child", nargs=2, metavar=("WORK", "SECONDS"))
    chosen = options.parse_args()
    if chosen.child:
        work, seconds = chosen.child
        child(work, chosen.busy, float(seconds))
        return
    rounds, seconds = (1, 3.0) if chosen.quick else (chosen.rounds, 4.0)
    for work in chosen.work or ["training", "decoding"]:
        settings = PEERS[work] | {setting: dict([setting.split("=", 1)]) for setting in chosen.setting}
        ours = contender(work, chosen.busy, seconds, {})
        peers = {name: contender(work, chosen.busy, seconds, changes) for name, changes in settings.items()}
        facts = {"work": work, "busy": chosen.busy}
        results = protocol.compare("beside", ours, peers, rounds, "beside", facts)
        for name, ones in results.items():
            shares, alone = ([one[key] for one in ones] for key in ("share", "alone"))
            ratios = [one / mine["alone"] for one, mine in zip(alone, results["mm-rec"], strict=True)]
            print(
                f"{work}, {name}: alone {statistics.median(alone):,.0f} tokens/s ({statistics.median(ratios):.3f} of "
                f"ours), beside {chosen.busy} a share of {statistics.median(shares):.2f} "
                f"({min(shares):.2f} to {max(shares):.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
