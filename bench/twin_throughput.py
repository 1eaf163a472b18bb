"""Training speed of MM-Rec against its LLaMA twin by sequence length, both by our loop, compiled, in the best dtype.

    python bench/twin_throughput.py [--quick] [--length 512|2048|8192] [--rounds 5]

Width 256, 4 layers, vocabulary 4,096, Muon, equal parameters (arms.py); 8,192 tokens a step at 8,192, 4,096 at the
others. Goals: tokens a second relative to the twin's 1.0 at 512, 1.5 at 2,048, 4 at 8,192.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import protocol
from arms import ARMS, REFERENCE, WIDE, config_of
from train_throughput import ours, precision, write_tokens

GOALS = {512: 1.0, 2048: 1.5, 8192: 4.0}
WARM_UP, TIMED = 4, 8  # steps
DOCUMENT = 120_000  # tokens: few rows hold two documents, whose attention would cost less


def child(arm: str, length: int, corpus: Path) -> None:
    """Train one contender in this process and hand over its figures."""
    import statistics

    rows = max(1, 4096 // length)
    with tempfile.TemporaryDirectory() as scratch:
        ends, _ = ours(config_of(arm, WIDE), corpus, WARM_UP + TIMED, Path(scratch), "muon", length, rows)
    lengths = [after - before for before, after in zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False)]
    speed = rows * length / statistics.median(lengths)
    protocol.child_result({"tokens_per_second": round(speed, 1), "peak_mb": round(protocol.peak_mb())})


def main() -> None:
    """Compare, or be a contender (`--child`)."""
    options = protocol.parser(__doc__)
    options.add_argument("--length", type=int, choices=GOALS, action="append")
    options.add_argument("--arm", choices=ARMS, default=REFERENCE)
    options.add_argument("--child", nargs=3, metavar=("ARM", "LENGTH", "CORPUS"))
    chosen = options.parse_args()
    if chosen.child:
        arm, length, corpus = chosen.child
        child(arm, int(length), Path(corpus))
        return
    dtype = str(precision()).removeprefix("torch.")

    def contender(name: str, length: int, corpus: Path) -> Any:
        return lambda: protocol.run_child(__file__, ["--child", name, str(length), str(corpus)], timeout=900)

    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        write_tokens(corpus, 30, WIDE.vocabulary, DOCUMENT)
        for length in chosen.length or GOALS:
            facts = {"arm": chosen.arm, "length": length, "goal": GOALS[length], "dtype": dtype}
            protocol.compare(
                "twin_throughput", contender(chosen.arm, length, corpus), {"llama": contender("llama", length, corpus)},
                1 if chosen.quick else chosen.rounds, "tokens_per_second", facts,
            )  # fmt: skip


if __name__ == "__main__":
    main()
