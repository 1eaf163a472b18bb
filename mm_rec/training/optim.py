"""Optimizers: AdamW for everything, or Muon for the hidden matrices and AdamW for the rest."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mm_rec.errors import CheckpointError
from mm_rec.runtime import choose_precision
from mm_rec.training.muon import Muon
from mm_rec.training.section import ResolvedTrainSection

_FACTOR = "rate_factor"  # of a parameter group, times the learning rate
_BY_HEAD = ("q_proj", "k_proj", "v_proj", "g_proj")
_GATES = ("write_proj", "decay_proj")  # of memories: each row is a gate of its own
# Of other models: a router of a few experts is no matrix that orthogonalising would help.
_SMALLEST_MATRIX = 16


class OptimizerSet:
    """One or two torch optimizers that step together; a parameter's state is known by the parameter's name."""

    def __init__(self, model: PreTrainedModel, section: ResolvedTrainSection) -> None:
        self.names = {
            parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        matrices, decayed, plain = _groups(model, section)
        second = [parameter for parameter in decayed if ".lora_B." in self.names[parameter]]
        first = [parameter for parameter in decayed if ".lora_B." not in self.names[parameter]]
        lora_plus = section.adapter.lora_plus if section.adapter else 1.0
        groups = [
            {"params": first, "weight_decay": section.weight_decay},
            {"params": second, "weight_decay": section.weight_decay, _FACTOR: lora_plus},
            {"params": plain, "weight_decay": 0.0},
        ]
        betas = (section.beta1, section.beta2)
        adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=section.learning_rate, betas=betas, fused=True
        )
        self.optimizers: list[torch.optim.Optimizer] = [adamw]
        if matrices:
            dtype = choose_precision(section.precision, matrices[0].device).dtype
            if matrices[0].dtype == torch.float64:
                dtype = torch.float64
            rows = _head_rows(model)
            self.optimizers.append(Muon(matrices, section.learning_rate, section.weight_decay, dtype, rows))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Every trained parameter, in the model's order."""
        return list(self.names)

    def set_learning_rate(self, rate: float) -> None:
        """Set the rate of the next step (Muon's is matched to AdamW's root mean square: Liu et al. 2025).

        An adapter's second matrices may learn faster (LoRA+, Hayou et al. 2024).
        """
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get(_FACTOR, 1.0)

    def step(self) -> None:
        """Change the parameters by their gradients."""
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        """Forget the gradients; a GPU keeps their memory, which recorded passes add to."""
        gradients = [parameter.grad for parameter in self.names if parameter.grad is not None]
        if gradients and gradients[0].device.type != "cpu":
            torch._foreach_zero_(gradients)
            return
        for parameter in self.names:
            parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Every slot as `parameter name|slot name` → tensor."""
        return {
            f"{self.names[cast(nn.Parameter, parameter)]}|{slot}": value
            for optimizer in self.optimizers
            for parameter, slots in optimizer.state.items()
            for slot, value in slots.items()
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` gave; raises CheckpointError where the parameters are others."""
        slots: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, slot = key.rsplit("|", 1)
            slots.setdefault(name, {})[slot] = tensor
        known = set(self.names.values())
        if slots and set(slots) != known:
            raise CheckpointError(
                f"the optimizer state is of other parameters (for example {sorted(set(slots) ^ known)[0]!r}); "
                "continue with the recipe that the checkpoint was made with"
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if self.names[parameter] in slots:
                        optimizer.state[parameter] = _on_device(slots[self.names[parameter]], parameter)


def _on_device(slots: dict[str, Tensor], parameter: Tensor) -> dict[str, Any]:
    # Fused AdamW keeps its step counter on the parameter's device.
    return {slot: tensor.to(parameter.device) for slot, tensor in slots.items()}


def _head_rows(model: PreTrainedModel) -> dict[nn.Parameter, int]:
    """Rows of one head in the matrices that make what several heads read: queries, keys, values, output gates."""
    rows: dict[nn.Parameter, int] = {}
    for module in model.modules():
        for projection in (getattr(module, name, None) for name in _BY_HEAD):
            if isinstance(projection, nn.Linear):
                size, memories = projection.out_features, getattr(module, "num_memories", None)
                head: int = size // memories if memories else getattr(module, "head_dim", size)
                rows[cast(nn.Parameter, projection.weight)] = head
    return rows


def _groups(
    model: PreTrainedModel, section: ResolvedTrainSection
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """(hidden matrices for Muon, other matrices with weight decay, one-dimensional and convolution without)."""
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    gates = {id(x) for name, x in model.named_parameters() if name.removesuffix(".weight").endswith(_GATES)}
    by_adamw = ends | gates
    matrices, decayed, plain = [], [], []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) not in linear | ends:
            plain.append(parameter)
        elif (
            section.optimizer == "muon"
            and id(parameter) not in by_adamw
            and min(parameter.shape) >= _SMALLEST_MATRIX
        ):
            matrices.append(parameter)
        else:
            decayed.append(parameter)
    return matrices, decayed, plain
