"""Fitting a model to a tokenizer: rows for the ids that it has not, and the ids of its special tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.tokenizers.loading import require_vocab_fits, vocabulary_size


def resize_token_embeddings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None], least: int = 0
) -> int:
    """Add the rows that a model lacks for a tokenizer's ids, and say so; returns their number, 0 where all fit.

    It has `least` rows then, or more: others round the number up.

    A new row is the mean of the old ones, in the embedding and in the head (Hewitt 2021, "Initializing new word
    embeddings for pretrained language models"): so no new token is likelier than the average of the old. Old rows do
    not change. Parameters are replaced by larger ones, so make the optimizer afterwards.
    """
    rows = _table(model).shape[0]
    needed = max(vocabulary_size(tokenizer), least)
    if needed <= rows:
        return 0
    with torch.random.fork_rng():  # transformers first draws the new rows at random
        model.resize_token_embeddings(needed, mean_resizing=False)
    _set_to_mean(_table(model), rows)
    head = model.get_output_embeddings()
    if head is not None and head.weight is not _table(model):
        _set_to_mean(head.weight, rows)
    if getattr(head, "bias", None) is not None:
        _set_to_mean(head.bias, rows)
    say(
        f"the tokenizer has {needed:,} ids and the model a vocabulary of {rows:,}: it was enlarged by "
        f"{needed - rows:,}. Each new row is the mean of the old ones"
    )
    return needed - rows


def align_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a model the tokenizer's ids of beginning, end and padding, for training and for `generate`.

    Raises TokenizerError where the tokenizer has ids that the model has not.
    """
    require_vocab_fits(tokenizer, _table(model).shape[0])
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token_id = getattr(tokenizer, name)
        setattr(model.config.get_text_config(), name, token_id)
        if model.generation_config is not None:
            setattr(model.generation_config, name, token_id)


def _table(model: PreTrainedModel) -> Tensor:
    """The embedding's weights, (V, D)."""
    table = model.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    return table


@torch.no_grad()
def _set_to_mean(values: Tensor, old: int) -> None:
    """Set the rows from `old` on to the mean of the rows before, taken in float32 at least."""
    wide = torch.promote_types(values.dtype, torch.float32)
    values[old:] = values[:old].mean(0, dtype=wide).to(values.dtype)
