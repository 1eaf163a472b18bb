"""A GPU that is not there: a device of its own whose operators run on the CPU, so that its results are the CPU's.

torch's PrivateUse1 with a backend in Python. What a real GPU would refuse or wait for is found by it:

    mixed devices     an operator that gets tensors of both raises, as on a GPU
    synchronisations  what hands a value to Python or copies to the CPU waits for the device: where that happened is
                      noted, and while a graph is recorded it is refused
    launches          operators that would start a kernel are counted; views and allocations are not
    graphs            as CUDA's: recording computes nothing, replaying does the same on the same memory, as one launch
    memory, dtypes    there may be little of it, and some may be missing
"""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "fakegpu"
aten = torch.ops.aten
_WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "unique_consecutive", "_unique2", "equal", "is_nonzero",
    "repeat_interleave.Tensor",
}  # fmt: skip
_NO_KERNEL = {
    "empty.memory_format", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "detach", "alias",
    "lift_fresh", "_local_scalar_dense", "_unsafe_view", "_reshape_alias", "set_.source_Tensor",
}  # fmt: skip
# Those that all others begin with, and those that would resize what they give, which a tensor of ours cannot.
_FACTORIES = (
    "empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace",
    "randperm", "randperm.generator",
)  # fmt: skip
_COPIES = {"copy_", "_to_copy", "_copy_from"}
_NARROWED_BY_AUTOCAST = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention")


@dataclass
class Record:
    """What a device did."""

    launches: Counter[str] = field(default_factory=Counter)
    synchronisations: list[str] = field(default_factory=list)  # the operator and the line of ours that asked


class _Memory:
    """The device's memory, of which tensors take what their storage does until the last view of it is gone."""

    def __init__(self, size: int) -> None:
        self.size = self.free = size
        self.holders: Counter[int] = Counter()


class _Share:
    """What a tensor holds of the memory as long as it lives; torch swaps no tensors that are referred to weakly."""

    def __init__(self, memory: _Memory, held: Tensor) -> None:
        """Raises what a GPU raises where its memory is full."""
        storage = held.untyped_storage()
        self._memory, self._address, self._size = memory, storage.data_ptr(), storage.nbytes()
        if not memory.holders[self._address]:
            if self._size > memory.free:
                raise torch.OutOfMemoryError(f"{NAME} out of memory. Tried to allocate {self._size} bytes")
            memory.free -= self._size
        memory.holders[self._address] += 1

    def __del__(self) -> None:
        if hasattr(self, "_address") and self._memory.holders[self._address]:
            self._memory.holders[self._address] -= 1
            if not self._memory.holders[self._address]:
                self._memory.free += self._size


class CUDAGraph:
    """What was launched while it was recorded, to be launched again on the same memory: one launch."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, Any, dict[str, Any], Any]] = []  # operators, and what they gave
        self.overwritten: list[tuple[Tensor, Tensor]] = []  # tensors, and what was in them before

    def replay(self) -> None:
        """Run it again."""
        _gpu.record.launches["graph"] += 1
        for func, args, kwargs, before in self.launches:
            after = func(*tree_map(_held, args), **tree_map(_held, kwargs))
            for old, new in zip(tree_flatten(before)[0], tree_flatten(after)[0], strict=True):
                if isinstance(old, FakeGPUTensor) and old.held is not new:
                    old.held.copy_(new)

    def undo(self) -> None:
        """Have everything as it was before the recording."""
        for held, before in reversed(self.overwritten):
            if held.shape == before.shape:  # else it was made meanwhile
                held.copy_(before)
        self.overwritten.clear()


class FakeGPUTensor(Tensor):
    """A tensor that says it lies on the device; `held` is the tensor of the CPU that has its numbers."""

    held: Tensor
    share: _Share

    @staticmethod
    def __new__(cls, held: Tensor) -> FakeGPUTensor:
        made: FakeGPUTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device(NAME, 0), requires_grad=False,
        )  # fmt: skip
        made.held = held
        if _gpu.memory is not None and _gpu.recording is None:  # a graph uses its memory again and again
            made.share = _Share(_gpu.memory, held)
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _gpu.run(func, args, kwargs or {})

    def tolist(self) -> Any:
        """As of any tensor, and a wait."""
        _gpu.wait("tolist")
        return self.held.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        """Where its numbers lie."""
        return self.held.untyped_storage()

    def storage(self) -> Any:
        """The same, for those that still ask so."""
        return self.held.storage()

    def data_ptr(self) -> int:
        """The address of its first number."""
        return self.held.data_ptr()

    def __repr__(self, **_: Any) -> str:
        return f"FakeGPUTensor({self.held})"


class _GPU(ModuleType):
    """The device, and what torch asks of its module (`torch.fakegpu`)."""

    CUDAGraph = CUDAGraph

    def __init__(self) -> None:
        super().__init__(f"torch.{NAME}")
        self.record = Record()
        self.missing_dtypes: Collection[torch.dtype] = ()
        self.recording: CUDAGraph | None = None
        self.warns = False
        self.libraries: list[torch.library.Library] = []  # what they register lasts as long as they do
        self.memory: _Memory | None = None

    def install(self) -> None:
        """Make the device known to torch: once in a process, and for all of its life."""
        if self.libraries:
            return
        _setup_privateuseone_for_python_backend(NAME, self)
        library, others = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
        self.libraries += [library, others]
        for name in _FACTORIES:
            library.impl(name, _allocate(getattr(aten, name.partition(".")[0])), "PrivateUse1")
        library.impl("_copy_from", _copy_from, "PrivateUse1")
        for name in _NARROWED_BY_AUTOCAST:
            library.impl(name, _narrowed(getattr(aten, name).default), "AutocastPrivateUse1")
        others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operator of the device."""
        name = func.name().removeprefix("aten::")
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        on_device = self._is_given_there(name, args, kwargs)
        self._refuse(name, args, kwargs, tensors)
        if name in _WAITING or (name in _COPIES and not on_device):
            self.wait(name)
        if self.recording is None and not func.is_view and name not in _NO_KERNEL:
            self.record.launches[name] += 1
        kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        written = _written(func, args, kwargs)
        if self.recording is not None:
            self.recording.overwritten.extend((one.held, one.held.clone()) for one in written)
        out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        assert all(one.shape == one.held.shape for one in written), (
            f"{name} resizes: it belongs to _FACTORIES"
        )
        if _gives_back_argument(func):
            out = args[0]
        elif on_device:
            out = tree_map(lambda x: FakeGPUTensor(x) if isinstance(x, Tensor) else x, out)
        if self.recording is not None and not func.is_view:
            self.recording.launches.append((func, args, kwargs, out))
        return out

    def _is_given_there(self, name: str, args: Any, kwargs: dict[str, Any]) -> bool:
        """Whether an operator's result lies on the device."""
        if name == "copy_":
            return isinstance(args[0], FakeGPUTensor)
        device = kwargs.get("device")
        return device is None or torch.device(device).type == NAME

    def _refuse(self, name: str, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
        """Raise what a GPU raises for tensors of the CPU and for dtypes that it lacks."""
        elsewhere = [x for x in tensors if not isinstance(x, FakeGPUTensor)]
        if name.startswith(("index", "_index")) and elsewhere and isinstance(args[0], FakeGPUTensor):
            self.wait(name)  # indices of the CPU are copied there
        elif name not in _COPIES and any(x.dim() for x in elsewhere):
            raise RuntimeError(f"{name}: tensors of {NAME} and of the CPU together")
        for dtype in [kwargs.get("dtype"), *(x.dtype for x in tensors)]:
            if dtype in self.missing_dtypes:
                raise TypeError(f"{name}: {NAME} has no {dtype}")

    def wait(self, what: str) -> None:
        """Note that something waits for the device."""
        if self.warns:
            warnings.warn(f"called a synchronizing operation: {what}", stacklevel=3)
        if self.recording is not None:
            raise RuntimeError(f"{what}: a GPU cannot be waited for while a graph is recorded")
        ours = [one for one in traceback.extract_stack() if "/mm_rec/" in one.filename]
        where = f"{ours[-1].filename.rpartition('/mm_rec/')[2]}:{ours[-1].lineno}" if ours else "?"
        self.record.synchronisations.append(f"{what} at {where}")

    @contextmanager
    def graph(self, recorded: CUDAGraph, **_: Any) -> Iterator[None]:
        """Record what is launched."""
        self.recording = recorded
        try:
            yield
        finally:
            self.recording = None
            recorded.undo()

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def synchronize(self, device: Any = None) -> None:
        self.wait("synchronize")

    def set_sync_debug_mode(self, mode: str) -> None:
        self.warns = mode == "warn"

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        memory = self.memory or _Memory(2 << 30)
        return memory.free, memory.size

    def memory_reserved(self, device: Any = None) -> int:
        free, size = self.mem_get_info()
        return size - free

    def graph_pool_handle(self) -> tuple[int, int]:
        return 0, 0

    def device(self, device: Any) -> nullcontext[None]:
        return nullcontext()

    stream = device

    def Stream(self, device: Any) -> None:  # noqa: N802  # torch's name
        return None

    def current_stream(self, device: Any) -> None:
        return None


_gpu = _GPU()


def _allocate(operator: Any) -> Any:
    """A factory of the device; all others fill what these give."""

    def allocate(*args: Any, device: Any = None, pin_memory: Any = None, **kwargs: Any) -> FakeGPUTensor:
        if kwargs.get("dtype") in _gpu.missing_dtypes:
            raise TypeError(f"{NAME} has no {kwargs['dtype']}")
        return FakeGPUTensor(operator(*args, device="cpu", **kwargs))

    return allocate


def _narrowed(operator: Any) -> Any:
    """An operator whose arguments autocast narrows, as a GPU's does."""
    autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def narrow(x: Any) -> Any:
        is_wide = isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
        return x.to(torch.get_autocast_dtype(NAME)) if is_wide else x

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            return operator(*tree_map(narrow, args), **tree_map(narrow, kwargs))

    return call


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """What `torch.tensor(…, device=…)` fills a tensor by."""
    _held(target).copy_(_held(source))
    return target


def _held(x: Any) -> Any:
    return x.held if isinstance(x, FakeGPUTensor) else x


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[FakeGPUTensor]:
    """The tensors that an operator changes."""
    named = zip(func._schema.arguments, [*args, *[None] * len(func._schema.arguments)], strict=False)
    written = [
        kwargs.get(argument.name, value)
        for argument, value in named
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return [x for x in tree_flatten(written)[0] if isinstance(x, FakeGPUTensor)]


def _gives_back_argument(func: Any) -> bool:
    """Whether an operator changes its first argument and gives it back."""
    schema = func._schema
    first = schema.arguments[0].alias_info if schema.arguments else None
    return bool(first and first.is_write and len(schema.returns) == 1 and not func.is_view)


@contextmanager
def fake_gpu(without: Collection[torch.dtype] = (), memory: int | None = None) -> Iterator[Record]:
    """The device for as long as this lasts, and the record of what it does.

    It lacks the dtypes `without`, and has so many bytes of memory, or no end of it.
    """
    _gpu.install()
    before = torch.__future__.get_swap_module_params_on_conversion(), torch._C._InferenceMode
    torch.__future__.set_swap_module_params_on_conversion(True)  # tied weights stay one tensor
    # torch's inference mode knows no views of tensors that are not its own classes'.
    torch._C._InferenceMode = lambda mode: torch.set_grad_enabled(not mode)  # type: ignore[assignment]
    _gpu.record, _gpu.memory = Record(), None if memory is None else _Memory(memory)
    _gpu.missing_dtypes = without
    try:
        # On one thread: torch would want one for each device that was there when it first differentiated.
        with torch.autograd.set_multithreading_enabled(False):
            yield _gpu.record
    finally:
        _gpu.memory, _gpu.missing_dtypes = None, ()
        torch._C._InferenceMode = before[1]  # type: ignore[misc]
        torch.__future__.set_swap_module_params_on_conversion(before[0])
