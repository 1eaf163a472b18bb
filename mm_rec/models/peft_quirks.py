"""What PEFT does that has to be kept from it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """PEFT warns of what it is asked to do on purpose, and asks transformers by a name that has changed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


@contextlib.contextmanager
def without_rows_of_others(model: nn.Module, name: str) -> Iterator[None]:
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
