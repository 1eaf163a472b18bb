"""The memory layer alone, forward and backward: our kernel by tokens of a chunk, against torch's compiled form of it.

    python bench/memory_layer.py [--quick] [--rounds 5] [--precision bfloat16]

Eight rows of 512 tokens and one of 4,096, four memories of 64 x 64. Both are timed in turn in one
process; `ratio` is torch's time over the kernel's. memory_kernel.CHUNK is 32: 16 keeps twice as many states.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import protocol

MEMORIES, SIZE = 4, 64
SHAPES = ((8, 512), (1, 4096))
CHUNKS = (16, 32, 64, 128)


def timed(form: Any, inputs: tuple[Any, ...]) -> float:
    """Seconds of a forward and a backward pass."""
    start = time.perf_counter()
    out = form(*inputs)
    out.backward(out.detach())
    return time.perf_counter() - start


def main() -> None:
    """Print a line of JSON for each shape and chunk."""
    options = protocol.parser(__doc__)
    options.add_argument("--precision", choices=("bfloat16", "float32"), action="append")
    chosen = options.parse_args()
    import torch

    from mm_rec import cpu
    from mm_rec.models import memory_kernel
    from mm_rec.models.mmrec.configuration_mmrec import MMRecConfig
    from mm_rec.models.mmrec.forward_context import make_context
    from mm_rec.models.mmrec.memory import MMRecMemory, Projected

    width = MEMORIES * SIZE
    config = MMRecConfig(hidden_size=width, num_hidden_layers=1)
    torch.manual_seed(0)
    layer = MMRecMemory(config, 0)
    torch.nn.init.normal_(layer.conv_weight, std=0.5)
    torch.nn.init.uniform_(layer.decay_log_rate, -8, -1)
    if why := memory_kernel.unavailable_reason():
        raise SystemExit(f"there is no kernel here: {why}")
    memory_kernel.register()
    by_torch = torch.compile(layer._mix, dynamic=False)
    for precision in chosen.precision or ("bfloat16", "float32"):
        dtype = getattr(torch, precision)
        for batch, length in SHAPES:
            context = make_context(config, torch.zeros(batch, length, width), None, None, None)
            features = [torch.randn(batch, length, width).to(dtype).requires_grad_() for _ in range(4)]
            write = torch.rand(batch, length, MEMORIES).requires_grad_()
            decay = (-0.1 * torch.rand(batch, length, MEMORIES)).requires_grad_()

            forms: dict[Any, Any] = dict.fromkeys(CHUNKS, layer._mix_fast) | {"torch": by_torch}
            times: dict[Any, list[float]] = {name: [] for name in forms}
            for number in range(3 + (3 if chosen.quick else 3 * chosen.rounds)):
                for name, form in forms.items():
                    memory_kernel.CHUNK = 0 if name == "torch" else name
                    seconds = timed(form, (Projected(*features, write, decay), context))
                    if number >= 3:
                        times[name].append(seconds)
            medians = {name: statistics.median(found) for name, found in times.items()}
            for chunk in CHUNKS:
                row = {
                    "bench": "memory_layer", "rows": batch, "length": length, "dtype": precision, "chunk": chunk,
                    "ratio": round(medians["torch"] / medians[chunk], 2), "ms": round(1e3 * medians[chunk], 1),
                    "torch_ms": round(1e3 * medians["torch"], 1), "processor": cpu.describe(),
                }  # fmt: skip
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
