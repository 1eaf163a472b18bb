"""A model of random weights that does as it should: it calls where it can, and answers when it was told a result.

What a random model does where it may call or not is chance, which differs between processors; a client's loop of calls
and results would end or not. Weights decide everything else, and grammars hold it to their form as any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mm_rec.inference.grammar.token_bytes import token_bytes
from mm_rec.inference.sampler import Sampler

LONG_ENOUGH = 20  # characters of an answer, after which it ends where it may
_BIAS = 1e4  # logits; what a grammar rules out has −∞ and stays so
_NAMES = {"user": b"w", "tool": b"f"}  # the first signs of `weather`, and of pydantic-ai's `final_result`


@contextmanager
def obliging(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Every sampler prefers what an obliging model would."""
    original, spelled = Sampler.sample, token_bytes(tokenizer)
    call = tokenizer.convert_tokens_to_ids("<|tool_call|>")

    def sample(self: Sampler, logits: Tensor) -> int:
        conversation, _, answer = tokenizer.decode(list(self._recent)).rpartition("<|assistant|>\n")
        last = re.findall(r"<\|(user|tool)\|>\n", conversation)[-1:]
        biased, held_to_grammar = logits.clone(), bool(logits.isneginf().any())
        biased[call] += _BIAS if held_to_grammar and not answer and last == ["user"] else -_BIAS
        if last and answer.endswith('{"name": "'):
            biased[spelled.index(_NAMES[last[0]])] += _BIAS
        if len(answer) > LONG_ENOUGH:
            biased[tokenizer.eos_token_id] += _BIAS
        return original(self, biased)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "sample", sample)
        yield
