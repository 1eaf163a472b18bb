"""Training and decoding beside other work: what is left of the speed while other processes are busy.

    python bench/beside.py [--quick] [--busy 1] [--rounds 5]

One process trains `tiny` (compiled, Muon, the machine's dtype, 4,096 tokens a step) and one decodes one stream with a
model of its size; each is timed in turn alone and beside processes that never rest. The peer is libgomp as it comes
(GOMP_SPINCOUNT=300000: its threads wait actively at every barrier); ours is what `mm_rec.processor` sets. The row's
`ratio` is ours / peer beside the busy processes; `beside` is each one's speed there as a share of its own alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import protocol

from mm_rec import processor

LIBGOMP = {"GOMP_SPINCOUNT": "300000"}  # its default for a team that is no larger than the machine
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
    from mm_rec.runtime import choose_precision
    from mm_rec.training.config import TrainingConfig
    from mm_rec.training.objectives import next_token
    from mm_rec.training.optim import OptimizerSet

    model = build(preset("tiny").config(5_000), seed=0).train()
    compile_layers(model)
    config = TrainingConfig(steps=1, seq_len=SEQ_LEN, micro_batch=ROWS, learning_rate=1e-3)
    optimizer = OptimizerSet(model, config)
    objective = next_token(choose_precision("auto", model.device).dtype)
    ids = torch.randint(0, 5_000, (ROWS, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids, "document_ids": torch.zeros_like(ids)}

    def step() -> None:
        loss, count, _ = objective(model, batch)
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
            decoder.read([state], [[token]], [-1])

    return step, 20


def child(work: str, count: int, rounds: int, seconds: float) -> None:
    """Time one kind of work alone and beside, in turn; hands over tokens a second of each."""
    step, tokens = {"training": training, "decoding": decoding}[work]()
    for _ in range(WARM_UP):
        step()

    def speed() -> float:
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            step()
            done += tokens
        return done / (time.perf_counter() - start)

    alone, beside = [], []
    for _ in range(rounds):
        alone.append(speed())
        with busy(count):
            beside.append(speed())
    shares = [there / before for before, there in zip(alone, beside, strict=True)]
    protocol.child_result(
        {
            "alone": round(statistics.median(alone)),
            "tokens_per_second": round(statistics.median(beside)),
            "beside": round(statistics.median(shares), 3),
            "beside_range": [round(min(shares), 3), round(max(shares), 3)],
            "peak_mb": round(protocol.peak_mb()),
        }
    )


def main() -> None:
    """Compare, or be a contender (`--child`)."""
    options = protocol.parser(__doc__)
    options.add_argument("--busy", type=int, default=1, help="how many other processes are busy")
    options.add_argument("--work", choices=["training", "decoding"], action="append")
    options.add_argument("--child", nargs=3, metavar=("WORK", "ROUNDS", "SECONDS"))
    chosen = options.parse_args()
    if chosen.child:
        work, rounds, seconds = chosen.child
        child(work, chosen.busy, int(rounds), float(seconds))
        return
    rounds, seconds = (1, 3.0) if chosen.quick else (chosen.rounds, 4.0)
    for work in chosen.work or ["training", "decoding"]:
        arguments = ["--child", work, str(rounds), str(seconds), "--busy", str(chosen.busy)]

        def contender(changes: dict[str, str], arguments: list[str] = arguments) -> dict[str, Any]:
            before = dict(os.environ)
            os.environ.update(changes)
            try:
                return protocol.run_child(__file__, arguments, timeout=600)
            finally:
                os.environ.clear()
                os.environ.update(before)

        ours, peer = contender({}), contender(LIBGOMP)
        row = {
            "bench": "beside", "work": work, "busy": chosen.busy, "peer": "libgomp as it comes",
            "ratio": round(ours["tokens_per_second"] / peer["tokens_per_second"], 3),
            "alone_ratio": round(ours["alone"] / peer["alone"], 3),
            "ours": ours, "theirs": peer, "rounds": rounds, "threads": os.cpu_count(),
            "processor": processor.describe(),
        }  # fmt: skip
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
