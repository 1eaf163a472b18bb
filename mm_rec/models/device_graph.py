"""Work of a device that is recorded once and launched as one (CUDA graphs)."""

from __future__ import annotations

import contextlib
import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

_one_at_a_time = threading.Lock()  # torch records one graph at a time in a process
_pools: dict[torch.device, Any] = {}


def can_record(device: torch.device) -> bool:
    """Return whether a device has graphs."""
    return hasattr(torch.get_device_module(device), "CUDAGraph")


@contextlib.contextmanager
def noting_waits(device: torch.device) -> Iterator[list[str]]:
    """The places where work waits for the device, filled when this ends: such work cannot be recorded.

    Recording it anyway would leave torch in the middle of a recording.
    """
    module, waits = torch.get_device_module(device), list[str]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            module.set_sync_debug_mode("default")
    waits += [
        f"{one.filename.rpartition('/')[2]}:{one.lineno}"
        for one in caught
        if "synchronizing" in str(one.message)
    ]


def record(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """What launches again, on the same memory, what `work` launches; nothing is computed by recording.

    `work` must have been done once, for what it allocates and compiles at first, and must not wait for the device.
    Graphs share their memory for what lies between: what they give is to be copied before another is launched.
    """
    module = torch.get_device_module(device)
    with _one_at_a_time, module.device(device), module.stream(module.Stream(device)):
        gc.collect()  # an autograd graph that waits for it would draw another stream into the recording
        pool = _pools.setdefault(device, module.graph_pool_handle())
        graph = module.CUDAGraph()
        # Other threads may go on meanwhile: a server reads models while it answers.
        with module.graph(
            graph, pool=pool, stream=module.current_stream(device), capture_error_mode="thread_local"
        ):
            work()
    replay: Callable[[], None] = graph.replay
    return replay
