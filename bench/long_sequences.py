"""One long sequence: what it costs by its length, in time and in memory, and what decoding keeps.

    python bench/long_sequences.py [--quick] [--rounds 3] [--arm mmrec]

Width 256, 4 layers, vocabulary 4,096 (arms.py), random tokens, segments of 4,096. Lines of JSON:

    time      a training pass, forward and backward, of 32,768 tokens relative to one of 8,192 (goal: 4.0 ± 0.4)
    memory    peak of a process that measures the loss of 131,072 tokens relative to one of 8,192 (goal: within 10 %)
    state     bytes of the state after 8,192 tokens and after 131,072 (goal: equal)
    decoding  resident memory after 100,000 written tokens relative to after 1,000 (goal: under 2 % more), and the rates
"""

from __future__ import annotations

import json
import pathlib
import statistics
import time
from typing import Any

import protocol
from arms import ARMS, REFERENCE, WIDE, config_of

SEGMENT = 4096
SHORT, LONG, LONGEST = 8_192, 32_768, 131_072
WRITTEN = 100_000


def prepare(arm: str, length: int) -> tuple[Any, Any, Any]:
    """The model, the objective and a row of random tokens."""
    import torch

    from mm_rec.models.presets import build
    from mm_rec.runtime import choose_precision
    from mm_rec.training.objectives import segmented_next_token

    model = build(config_of(arm, WIDE), seed=0)
    objective = segmented_next_token(model, choose_precision("auto", torch.device("cpu")).dtype, SEGMENT)
    ids = torch.randint(0, WIDE.vocabulary, (1, length))
    return model, objective, {"input_ids": ids, "labels": ids}


def training_pass(arm: str, length: int) -> dict[str, Any]:
    """Seconds of a forward and a backward pass, the second of two."""
    model, objective, batch = prepare(arm, length)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        objective(model.train(), batch)["loss"].total.backward()
        seconds.append(time.perf_counter() - start)
        model.zero_grad()
    return {"seconds": seconds[-1], "peak_mb": protocol.peak_mb()}


def loss_alone(arm: str, length: int) -> dict[str, Any]:
    """The peak of memory of measuring a loss, and the bytes of the state after it."""
    import torch

    from mm_rec.models.forward import new_carried_state, read_segment

    model, objective, batch = prepare(arm, length)
    with torch.no_grad():
        objective(model.eval(), batch)
        peak, state = protocol.peak_mb(), new_carried_state(model, 1)
        for ids in batch["input_ids"].split(SEGMENT, dim=1):
            state = read_segment(model, {"input_ids": ids}, state)[1]
    return {"peak_mb": peak, "state_bytes": state.nbytes}


def decoding(arm: str, length: int) -> dict[str, Any]:
    """Resident memory after 1,000 tokens and after `length`, and the rates of the thousand tokens before each."""
    import torch

    from mm_rec.inference.engine import Engine
    from mm_rec.inference.sampler import SamplingParams
    from mm_rec.models.presets import build

    with torch.inference_mode():
        session = Engine(build(config_of(arm, WIDE), seed=0).eval()).session()
        session.prefill([1, 2, 3])
        sizes, rates, start = [], [], time.perf_counter()
        for number, _ in enumerate(
            session.generate(SamplingParams(temperature=1.0, seed=0, max_new_tokens=length)), 1
        ):
            if number % 1000 == 0:
                rates.append(1000 / (time.perf_counter() - start))
                sizes.append(resident_mb())
                start = time.perf_counter()
    return {
        "sizes_mb": [sizes[0], sizes[-1]],
        "rates": [statistics.median(rates[:5]), statistics.median(rates[-5:])],
    }


def resident_mb() -> float:
    """Resident memory of this process."""
    with pathlib.Path("/proc/self/statm").open(encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


MEASURES = {"training_pass": training_pass, "loss_alone": loss_alone, "decoding": decoding}


def main() -> None:
    """Print the lines, or be a measurement (`--child`)."""
    options = protocol.parser(__doc__)
    options.add_argument("--arm", choices=ARMS, default=REFERENCE)
    options.add_argument("--child", nargs=3, metavar=("MEASURE", "ARM", "LENGTH"))
    chosen = options.parse_args()
    if chosen.child:
        measure, arm, length = chosen.child
        protocol.child_result(MEASURES[measure](arm, int(length)))
        return
    rounds, written = (1, 5_000) if chosen.quick else (chosen.rounds, WRITTEN)

    def child(measure: str, length: int) -> dict[str, Any]:
        return protocol.run_child(__file__, ["--child", measure, chosen.arm, str(length)], timeout=1800)

    def say(**row: Any) -> None:
        print(json.dumps({"bench": "long_sequences", "arm": chosen.arm, **row}), flush=True)

    pairs = [(child("training_pass", SHORT), child("training_pass", LONG)) for _ in range(rounds)]
    ratios = [long["seconds"] / short["seconds"] for short, long in pairs]
    peaks = [round(max(one[place]["peak_mb"] for one in pairs)) for place in (0, 1)]
    seconds = [round(statistics.median(one[place]["seconds"] for one in pairs), 2) for place in (0, 1)]
    say(what="time", ratio=round(statistics.median(ratios), 3), goal=4.0, seconds=seconds, peaks_mb=peaks)
    short, long = child("loss_alone", SHORT), child("loss_alone", LONGEST)
    peaks = [round(short["peak_mb"]), round(long["peak_mb"])]
    say(what="memory", ratio=round(long["peak_mb"] / short["peak_mb"], 3), goal=1.1, peaks_mb=peaks)
    say(what="state", tokens=[SHORT, LONGEST], bytes=[short["state_bytes"], long["state_bytes"]])
    found = child("decoding", written)
    growth = found["sizes_mb"][1] / found["sizes_mb"][0] - 1
    say(what="decoding", growth=round(growth, 4), goal=0.02, rates=[round(rate) for rate in found["rates"]])


if __name__ == "__main__":
    main()
