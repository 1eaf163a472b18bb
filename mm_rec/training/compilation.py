"""Compiling a model's layers before it is trained, or training them as they are where that fails."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch.utils._triton import has_triton
from transformers import PreTrainedModel

from mm_rec import cpu
from mm_rec.errors import truncated
from mm_rec.models.forward import compile_layers, layers_are_compiled, uncompile_layers
from mm_rec.runtime import choose_precision
from mm_rec.training.objectives import next_token, segmented_next_token
from mm_rec.training.section import ResolvedTrainSection, TrainSection


def compiler_missing(device: torch.device) -> str:
    """What is missing to compile for a device, in a few words; nothing where it can be compiled for."""
    if device.type == "cpu":
        return "" if cpu.find_compiler() else "no C++ compiler here (g++)"
    if device.type == "cuda":
        windows = "triton-windows" if sys.platform == "win32" else "triton"
        return "" if has_triton() else f"no Triton here (pip install {windows})"
    return f"torch's compiler was not tried on {device.type}"


def compile_for_training(
    model: PreTrainedModel, section: ResolvedTrainSection, say: Callable[[str], None]
) -> bool:
    """Compile the layers and try them on rows of the run's size; returns whether they are compiled.

    A compiler that fails, a full disk, a cache folder that cannot be written or holds a damaged file: one sentence, and
    the layers stay as they are.
    """
    if layers_are_compiled(model):
        return True
    compile_layers(model)
    try:
        try_pass(model, section)
    except (BackendCompilerFailed, OSError) as error:
        uncompile_layers(model)
        first = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        say(f"layers are not compiled, which is slower: the compiler failed ({truncated(first)})")
        return False
    return True


def try_pass(model: PreTrainedModel, section: TrainSection) -> None:
    """A forward and a backward pass of the run's size that change nothing.

    Compiled layers are compiled by it, forward and backward; whatever the device has too little memory for is raised.
    """
    assert section.batch_size and section.seq_len
    shape = (section.batch_size, min(section.seq_len, section.segment_len or section.seq_len))
    ids = torch.arange(shape[0] * shape[1], device=model.device).view(shape) % model.config.vocab_size
    batch = {"input_ids": ids, "labels": ids, "document_ids": torch.zeros_like(ids)}
    training = model.training
    model.train()
    with torch.random.fork_rng(devices=[]):
        dtype = choose_precision(section.precision, model.device).dtype
        segment = section.segment_len
        objective = segmented_next_token(model, dtype, segment) if segment else next_token(dtype)
        sums = objective(model, batch)
        sums["loss"].total.backward()
    model.zero_grad(set_to_none=True)
    model.train(training)
