"""Open models, and load, replace and unload them while others answer.

A model's weights are read and let go by a thread of their own: the engine's goes on with what others are answered.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from mm_rec import cpu
from mm_rec.errors import ConfigError
from mm_rec.inference.loaded_model import LoadedModel
from mm_rec.inference.scheduler import Scheduler
from mm_rec.inference.served_model import ServedModel
from mm_rec.models.loading import load_with_adapters
from mm_rec.runtime import choose_device, choose_precision, trim_malloc


class UnknownModelError(ConfigError):
    """No model is served under a name."""


def open_model(
    ref: Path | str, adapters: Sequence[str] = (), device: str = "auto", precision: str = "auto", *,
    apply_adapters: bool = True, threads: int | None = None,
) -> LoadedModel:  # fmt: skip
    """Open a model: a folder, a run, a `.pt` file or a name of a hub, with adapters "FOLDER" or "FOLDER=WEIGHT".

    `precision`: auto (float32 on a CPU, what the device multiplies fastest on a GPU), float32, bfloat16, float16 or
    int8, a form of the CPU's kernels; where the fast form of decoding does not know the model and only it would gain,
    float32 is used, and the model's `notice` says so. `apply_adapters=False`: they are loaded, and none applied.
    Raises ConfigError and CheckpointError where something cannot be had.
    """
    int8 = precision == "int8"
    place = choose_device("cpu" if int8 and device == "auto" else device)
    if int8 and place.type != "cpu":
        raise ConfigError(
            f"int8 is a form of the CPU's kernels; use --device cpu, or another --precision on {place}"
        )

    def read(dtype: torch.dtype, int8: bool = False, notice: str = "") -> LoadedModel:
        model, tokenizer = load_with_adapters(ref, adapters, dtype, str(place), inactive=not apply_adapters)
        return LoadedModel(model, tokenizer, ref, adapters, int8=int8, threads=threads, notice=notice)

    if place.type != "cpu":
        return read(choose_precision(precision, place).dtype)  # type: ignore[arg-type]  # all but int8
    if precision in ("auto", "float32"):
        return read(torch.float32)
    if precision == "float16":
        raise ConfigError("float16 is for GPUs; on a processor use --precision bfloat16, int8 or float32")
    loaded = read(torch.bfloat16, int8)
    reason = loaded.engine.fallback_reason
    if not reason or (not int8 and cpu.has_native_bfloat16()):
        return loaded
    del loaded  # or its memory would be held twice
    return read(torch.float32, notice=f"{reason}; {precision} would not be faster here, so float32 is used")


class ModelManager:
    """The models of a program by name. They can be loaded, replaced and unloaded at any time, from any thread.

    A name is taken off or given to another model at once; a model is let go when the last that leases it has ended,
    and its memory is freed with it.
    """

    def __init__(
        self, scheduler: Scheduler, *, device: str = "auto", precision: str = "auto",
        prefix_cache_bytes: int = 0,
    ) -> None:  # fmt: skip
        self.scheduler = scheduler
        self.on_unload: list[Callable[[ServedModel], None]] = []  # called when a model is let go
        self._prefix_cache_bytes = prefix_cache_bytes
        self._open = partial(
            open_model, device=device, precision=precision, apply_adapters=False, threads=scheduler.threads
        )
        self._models: dict[str, ServedModel] = {}
        self._retired: list[tuple[ServedModel, Future[None]]] = []
        self._closed = False
        self._lock = threading.Lock()
        # Only the scheduler's thread computes with many, see there.
        self._worker = ThreadPoolExecutor(1, "models", initializer=partial(torch.set_num_threads, 1))

    @property
    def models(self) -> list[ServedModel]:
        """Return the models that requests can name now."""
        with self._lock:
            return list(self._models.values())

    @property
    def num_leases(self) -> dict[str, int]:
        """Return how many use each model now, by its name."""
        return {model.name: model.num_leases for model in self.models}

    def load(self, name: str, ref: Path | str, adapters: Sequence[str] = ()) -> str:
        """Load a model under a name that is free; returns its notice.

        Raises ConfigError where the name is taken, and what `open_model` does; nothing has changed then.
        """
        with self._lock:
            self._require_free({name})
        model = self._read(name, ref, adapters)
        self.add(model)
        return model.loaded.notice

    def add(self, model: ServedModel) -> None:
        """Serve a model that is loaded; raises ConfigError where one of its names is taken."""
        with self._lock:
            self._require_free(model.variants.keys())
            self._models[model.name] = model

    def replace(self, name: str, ref: Path | str, adapters: Sequence[str] = ()) -> Future[None]:
        """Load a model in the place of another; what was begun on the old one ends on it.

        Returns what is done when the old one is let go. Raises what `open_model` does; the old one stays then.
        """
        with self._lock:
            self._own(name)
        model = self._read(name, ref, adapters)
        with self._lock:
            old = self._own(name)
            self._require_free(model.variants.keys() - old.variants.keys())
            self._models[name] = model
            released = self._retire(old)
            del old
        self._release_unused()
        return released

    def load_adapter(self, name: str, adapter: str) -> Future[None]:
        """Replace a model by itself with one more adapter, "FOLDER" or "FOLDER=WEIGHT"."""
        with self._lock:
            loaded = self._find(name).loaded
        return self.replace(name, loaded.ref, [*loaded.adapters, adapter])

    def unload_adapter(self, name: str, adapter: str) -> Future[None]:
        """Replace a model by itself without the adapter of this name."""
        with self._lock:
            model = self._find(f"{name}:{adapter}")
            place = list(model.adapters).index(adapter)
            ref, kept = model.loaded.ref, list(model.loaded.adapters)
            del model, kept[place]
        return self.replace(name, ref, kept)

    def unload(self, name: str) -> Future[None]:
        """Take a model off; returns what is done when it is let go, after the last request that uses it."""
        with self._lock:
            released = self._retire(self._own(name))
            del self._models[name]
        self._release_unused()
        return released

    @contextlib.contextmanager
    def lease(self, name: str) -> Iterator[ServedModel]:
        """Use the model of a name, MODEL or MODEL:ADAPTER; it is not let go meanwhile.

        Raises UnknownModelError where there is none.
        """
        with self._lock:
            model = self._find(name)
            model.num_leases += 1
        try:
            yield model
        finally:
            with self._lock:
                model.num_leases -= 1
            del model
            self._release_unused()

    def close(self) -> None:
        """End all running requests; nothing can be loaded any more."""
        with self._lock:
            self._closed = True
            waiting, self._retired = self._retired, []
        self.scheduler.close()
        self._worker.shutdown(wait=False)
        for _, released in waiting:
            released.cancel()

    def _read(self, name: str, ref: Path | str, adapters: Sequence[str]) -> ServedModel:
        def read() -> ServedModel:
            return ServedModel(
                name, self._open(ref, adapters), self.scheduler, prefix_cache_bytes=self._prefix_cache_bytes
            )

        with self._lock:
            if self._closed:
                raise ConfigError("nothing can be loaded any more: the server is stopping")
            reading = self._worker.submit(read)
        return reading.result()

    def _find(self, name: str) -> ServedModel:
        for model in self._models.values():
            if name in model.variants:
                return model
        raise UnknownModelError(f"there is no model {name!r}; there are {', '.join(self._models) or 'none'}")

    def _require_free(self, names: Collection[str]) -> None:
        taken = {name for model in self._models.values() for name in model.variants}
        for name in sorted(taken.intersection(names)):
            raise ConfigError(f"two models have the name {name!r}; give one another: NAME=MODEL")

    def _own(self, name: str) -> ServedModel:
        """Return the model of a name that is its own, and not one of its adapters'."""
        model = self._find(name)
        if model.name != name:
            raise UnknownModelError(f"{name!r} is an adapter of {model.name!r}: use unload_adapter")
        return model

    def _retire(self, model: ServedModel) -> Future[None]:
        released: Future[None] = Future()
        self._retired.append((model, released))
        return released

    def _release_unused(self) -> None:
        """Have the models that nobody leases any more let go."""
        with self._lock:
            if not self._closed and any(not model.num_leases for model, _ in self._retired):
                self._worker.submit(self._release)

    def _release(self) -> None:
        released = self._let_go_unused()
        trim_malloc()
        for one in released:
            if one.set_running_or_notify_cancel():
                one.set_result(None)

    def _let_go_unused(self) -> list[Future[None]]:
        with self._lock:
            unused = [one for one in self._retired if not one[0].num_leases]
            self._retired = [one for one in self._retired if one[0].num_leases]
        self.scheduler.settle()  # or the engine would still be at a step of a request that has ended
        for model, _ in unused:
            for let_go in self.on_unload:
                let_go(model)
            model.let_go()
        return [released for _, released in unused]
