"""A model and its adapters made one model, with the proof that it says the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mm_rec.data.prompt_lines import copy_prompt_lines, read_prompt_lines
from mm_rec.errors import ConfigError, MismatchError
from mm_rec.inference.generate import encode_rendered
from mm_rec.models.adapters import adapters_of, find_adapter
from mm_rec.models.loading import find_model, load_model, load_with_adapters, parse_adapter, save_model
from mm_rec.models.resize import align_special_tokens
from mm_rec.runs.files import atomic_path, write_json
from mm_rec.tokenizers.loading import load_tokenizer

# Of the largest logit, in float32. Rounding alone reaches 5e-4 in some families (of 164, docs/models.md), whose
# multipliers or recurrences enlarge it; where layers use their weights past PEFT it is 0.1 and more.
MOST_DIFFERENCE = 1e-3
_TEXT = (
    "On a cold morning in March the old ferry left the harbour as it had done for forty years. "
    "Mart ayının soğuk bir sabahında eski vapur, kırk yıldır yaptığı gibi iskeleden ayrıldı."
)
_MOST_TOKENS = 512


def merge(base: str, wanted: Sequence[str], out: Path) -> float:
    """Write the model with its adapters merged into a new folder; returns how far its logits are from theirs.

    The difference is that of the written model, read again, to the base with adapters: max |a − b| / max |b| on real
    text and a training example. Raises MismatchError, and writes nothing, where it is over MOST_DIFFERENCE.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already. Give another folder")
    if not wanted:
        raise ConfigError("no adapter to merge: name one or more with --adapter")
    model, tokenizer = load_with_adapters(base, wanted)
    examples = [read_prompt_lines(find_adapter(parse_adapter(one)[0]))[1] for one in wanted]
    ids = encode_rendered(tokenizer, " ".join([_TEXT, *examples]))[:_MOST_TOKENS]
    before = _logits(model, ids)
    adapters = adapters_of(model)
    assert adapters is not None
    adapters.merge()
    if tokenizer.eos_token_id != load_tokenizer(find_model(base)).eos_token_id:  # it came with the adapter
        align_special_tokens(model, tokenizer)
    with atomic_path(out) as temporary:
        save_model(model, tokenizer, temporary)
        difference = float((_logits(load_model(temporary), ids) - before).abs().max() / before.abs().max())
        if not difference <= MOST_DIFFERENCE:
            raise MismatchError(
                f"the merged model's logits differ by {difference:.1e} of the largest, and {MOST_DIFFERENCE:.0e} is "
                "allowed: nothing was written"
            )
        if len(wanted) == 1:
            copy_prompt_lines(find_adapter(parse_adapter(wanted[0])[0]), temporary)
        write_json(
            temporary / "merged.json", {"base": base, "adapters": list(wanted), "difference": difference}
        )
    return difference


@torch.no_grad()
def _logits(model: PreTrainedModel, ids: list[int]) -> Tensor:
    logits: Tensor = model.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits
    return logits
