"""The engine: a model that reads token ids and says which come next. It knows nothing of text.

What a session has read is its state, whatever the family: MM-Rec's memories of constant size, or LLaMA's keys and
values. It is carried from call to call, so nothing is ever read twice.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, PreTrainedModel

from mm_rec.errors import UserError
from mm_rec.inference.sampling import Sampling, sample

SEGMENT_TOKENS = 512
RECENT_TOKENS = 256


class Engine:
    """A model made ready for decoding; its sessions share the weights and nothing else."""

    def __init__(self, model: PreTrainedModel, device: torch.device | str = "cpu") -> None:
        self.model = model.to(device).eval()  # type: ignore[arg-type]
        self.device = torch.device(device)

    @property
    def context_limit(self) -> int | None:
        """The most tokens that a session can hold; None where there is no limit, as with MM-Rec."""
        limit: int | None = getattr(self.model.config, "max_position_embeddings", None)
        return limit

    def session(self) -> Session:
        """An empty session."""
        return Session(self)

    def require_room(self, tokens: int) -> None:
        """Raise UserError where a session cannot hold that many tokens."""
        if self.context_limit is not None and tokens > self.context_limit:
            raise UserError(
                f"this model reads at most {self.context_limit:,} tokens, and {tokens:,} are needed. "
                "Give it less text, or start anew"
            )

    @torch.inference_mode()
    def continue_greedily(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_ids: Collection[int]
    ) -> list[list[int]]:
        """The likeliest continuation of each prompt, all decoded together; a stop token ends it, left out."""
        longest = max(len(prompt) for prompt in prompts)
        self.require_room(longest + max_new_tokens)
        ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(stop_ids) or None,
            pad_token_id=0,
        )
        stored = self.model.generation_config
        self.model.generation_config = (
            GenerationConfig()
        )  # what a model's folder prefers is not the likeliest
        try:
            read = self.model.generate(
                ids.to(self.device), attention_mask=mask.to(self.device), generation_config=config
            )
        finally:
            self.model.generation_config = stored
        rows: list[list[int]] = read[:, longest:].tolist()
        return [_until(row, stop_ids) for row in rows]


class Session:
    """One sequence of tokens being read and written: a conversation, a completion.

    `length` counts its tokens. `ended` says whether the last `generate` met a stop token.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.length = 0
        self.ended = False
        self._state: Cache | None = None
        self._logits: Tensor | None = None
        self._unread: list[int] = []  # chosen tokens are read only when something follows them
        self._recent: deque[int] = deque(maxlen=RECENT_TOKENS)

    def feed(self, ids: Sequence[int]) -> None:
        """Read tokens, in segments that bound the memory needed.

        Raises UserError, with nothing read, where they pass the model's context limit.
        """
        self.engine.require_room(self.length + len(ids))
        self._append(ids)
        self._read()

    def generate(self, sampling: Sampling, stop_ids: Collection[int] = ()) -> Iterator[int]:
        """Yield the tokens that follow, each chosen when it is asked for; they belong to the session from then on.

        A stop token is neither yielded nor read. Ends with `max_new_tokens` or at the context limit; raises
        UserError where there is no room for one token.
        """
        self.ended = False
        self.engine.require_room(self.length + 1)
        generator = sampling.generator()
        for _ in range(sampling.max_new_tokens):
            if self.length == self.engine.context_limit:
                return
            token = sample(self.next_logits(), generator, sampling, self._recent)
            if token in stop_ids:
                self.ended = True
                return
            self._append([token])
            yield token

    def next_logits(self) -> Tensor:
        """Logits (V,) of the next token, float32 on the CPU; raises ValueError where nothing was fed."""
        self._read()
        if self._logits is None:
            raise ValueError("nothing has been read yet: feed a token first, for example the tokenizer's bos")
        return self._logits

    def fork(self) -> Session:
        """An independent session that has read the same."""
        other = Session(self.engine)
        other.length, other._logits = self.length, self._logits
        other._unread, other._recent = list(self._unread), self._recent.copy()
        with torch.inference_mode():
            other._state = copy.deepcopy(self._state)
        return other

    def _append(self, ids: Sequence[int]) -> None:
        self._unread += ids
        self._recent.extend(ids)
        self.length += len(ids)

    @torch.inference_mode()
    def _read(self) -> None:
        """Read what has not been read, and keep the state and the last logits."""
        while self._unread:
            segment = torch.tensor([self._unread[:SEGMENT_TOKENS]], device=self.engine.device)
            out = self.engine.model(
                input_ids=segment, past_key_values=self._state, use_cache=True, logits_to_keep=1
            )
            self._state = out.past_key_values
            self._logits = out.logits[0, -1].float().cpu()
            del self._unread[:SEGMENT_TOKENS]


def _until(ids: list[int], stop_ids: Collection[int]) -> list[int]:
    end = next((place for place, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[:end]
