"""Workarounds for PEFT."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def suppress_peft_warnings() -> Iterator[None]:
    """PEFT warns of what it is asked to do on purpose, and asks transformers by a name that has changed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def require_no_nesting(model: nn.Module) -> None:
    """Raise ValueError where PEFT has put one kind of change around another, which it does not compute or take off."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper
    from peft.utils.other import AuxiliaryTrainingWrapper

    outer = None
    for name, module in model.named_modules():  # what is inside follows at once
        if outer is not None and not name.startswith(f"{outer}."):
            outer = None
        if isinstance(module, (LoraLayer, AuxiliaryTrainingWrapper)) and not isinstance(module, ParamWrapper):
            if outer is not None:
                raise ValueError(f"{outer} would be changed in two ways, and PEFT knows one at a time")
            outer = name


@contextlib.contextmanager
def ignore_other_token_rows(model: nn.Module, name: str) -> Iterator[None]:
    """PEFT reads an adapter's trained rows of tokens also where only other adapters have any, and fails: let it not.

    `trainable_token_indices` of one adapter beside another without.
    """
    from peft.utils.other import TrainableTokensWrapper

    others = [
        vars(module)
        for module in model.modules()
        if isinstance(module, TrainableTokensWrapper)
        and name not in module.token_adapter.trainable_tokens_delta
    ]
    asked = ("adapter_state_dict", "adapter_state_dict_load_map")
    for own in others:
        own.update(dict.fromkeys(asked, lambda *_: {}))
    try:
        yield
    finally:
        for own in others:
            for method in asked:
                del own[method]
