"""The engine: a model that reads token ids and says which come next. It knows nothing of text.

What a session has read is its state, whatever the family: MM-Rec's memories of constant size, or LLaMA's keys and
values. It is carried from call to call, so nothing is ever read twice. Many tokens of one session are read by the model
itself, in segments; few tokens, of many sessions at once, by the kernels of `native` where they know the model. They
read everything where the model would be slower: in bfloat16, on a processor that does not multiply it.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from mm_rec import cpu
from mm_rec.errors import CheckpointError, ConfigError, UserError
from mm_rec.inference.batched_decoder import BatchedDecoder, batched_decoder_for
from mm_rec.inference.native.decoder import KernelDecoder, decoder_for
from mm_rec.inference.padded_generate import generate_padded
from mm_rec.inference.sampler import (
    RECENT_TOKENS,
    Constraint,
    SampledToken,
    Sampler,
    SamplingParams,
    with_logprobs,
)
from mm_rec.models.adapters import adapters_of, apply_adapters
from mm_rec.models.states import (
    SequenceState,
    cache_argument,
    load_state,
    new_state,
    require_cache_support,
    save_state,
)
from mm_rec.models.traits import traits_of

PREFILL_CHUNK_TOKENS = 512
MAX_KERNEL_TOKENS = 64  # of a session: up to here the kernels of a CPU are the faster form of reading


class Engine:
    """A model made ready for decoding; its sessions share the weights and nothing else.

    `device`: the model is moved there (default: where it is). `int8`: the kernels keep the matrices as bytes, with a
    scale for every 64 weights. `threads`: of the kernels (default: as many as torch uses in this thread).
    `fallback_reason` says why the kernels are not used, and is empty where they are.
    """

    def __init__(
        self, model: PreTrainedModel, device: torch.device | str | None = None, *, int8: bool = False,
        threads: int | None = None,
    ) -> None:  # fmt: skip
        self.device = model.device if device is None else torch.device(device)
        if model.device != self.device:
            model.to(self.device)  # type: ignore[arg-type]
        self.model = model.eval()
        self._int8, self._threads = int8, threads
        self._cache_argument = cache_argument(self.model)
        self._prepare_kernels()
        if self.fallback_reason:
            require_cache_support(self.model)

    def _prepare_kernels(self) -> None:
        """Prepare the kernels for the model and the adapters that are on it now."""
        adapters = adapters_of(self.model)
        self._known_adapters = [] if adapters is None else adapters.names
        self._decoder: KernelDecoder | BatchedDecoder | None
        on_cpu = self.device.type == "cpu"
        if on_cpu:
            self._decoder, self.fallback_reason = decoder_for(self.model, self._int8, self._threads)
        else:
            self._decoder, self.fallback_reason = batched_decoder_for(self.model)
        self._kernels_are_faster = (
            on_cpu and self.model.dtype == torch.bfloat16 and not cpu.has_native_bfloat16()
        )
        # Of a session: up to here the decoder is the faster form of reading.
        self.max_decode_tokens = MAX_KERNEL_TOKENS if self._decoder is None else self._decoder.max_tokens

    @property
    def precision(self) -> str:
        """The format of the weights: "int8", or the name of their dtype."""
        return "int8" if self._int8 else str(self.model.dtype).removeprefix("torch.")

    @property
    def context_limit(self) -> int | None:
        """The most tokens that a session can hold; None where there is no limit, as with MM-Rec."""
        return traits_of(self.model.config).context_limit

    def session(self, adapters: Mapping[str, float] | None = None) -> Session:
        """An empty session that reads with these adapters, by name and weight (default: those applied now)."""
        on_model = adapters_of(self.model)
        if self._known_adapters != ([] if on_model is None else on_model.names):
            self._prepare_kernels()
        if adapters is None:
            adapters = {} if on_model is None else on_model.weights
        return Session(self, dict(adapters))

    def load_session(self, path: Path, state_fingerprint: Mapping[str, str]) -> Session:
        """A session that was saved; raises CheckpointError where it belongs to something else or to an adapter that is
        not loaded.
        """
        state = new_state(self.model, self.model.dtype, self.device)
        notes, extra = load_state(path, state, state_fingerprint)
        session = self.session(json.loads(notes["adapters"]))
        missing = [name for name in session.adapters if name not in self._known_adapters]
        if missing:
            raise CheckpointError(f"{path}: it was read with the adapter {missing[0]!r}, which is not loaded")
        session.state, session.length, session.logits = state, int(extra["length"]), extra.get("logits")
        session.pending_ids = [token for token in extra["unread"].tolist() if token >= 0]
        self.require_tokens(session.pending_ids, f"{path}: ")
        session.recent.extend(token for token in extra["recent"].tolist() if token >= 0)
        return session

    @torch.inference_mode()
    def forward(self, sessions: Sequence[Session]) -> None:
        """Read the pending tokens of each session: long prompts in chunks, the last few tokens of all in one pass."""
        few = []
        for session in sessions:
            slot = self._adapter_slot(session)
            while len(session.pending_ids) > (0 if slot is None else self.max_decode_tokens):
                self.prefill_chunk(session)
            if slot is not None and session.pending_ids:
                few.append((session, slot))
        if few and self._decoder is not None:
            logits = self._decoder.forward(
                [one.writable_state() for one, _ in few],
                [one.pending_ids for one, _ in few],
                [slot for _, slot in few],
            )
            for (session, _), row in zip(few, logits, strict=True):
                session.logits, session.pending_ids = row, []

    def _adapter_slot(self, session: Session) -> int | None:
        """Return the kernels' slot of a session's adapters; None where the kernels cannot run them."""
        return None if self._decoder is None else self._decoder.adapter_slot(session.adapters)

    def release(self, state: SequenceState) -> None:
        """Give a state tensors of its own again, where a decoder for many keeps it in its own."""
        if isinstance(self._decoder, BatchedDecoder):
            self._decoder.release(state)

    @torch.inference_mode()
    def prefill_chunk(self, session: Session) -> None:
        """Read the next chunk of pending tokens; its length bounds the memory needed."""
        slot = self._adapter_slot(session) if self._kernels_are_faster else None
        if slot is None or self._decoder is None:
            session.logits = self._forward_model(session, logits_to_keep=1)[0, -1].float().cpu()
            return
        session.logits = self._decoder.forward(
            [session.writable_state()], [session.pending_ids[:PREFILL_CHUNK_TOKENS]], [slot]
        )[0]
        del session.pending_ids[:PREFILL_CHUNK_TOKENS]

    @torch.inference_mode()
    def score_chunk(self, session: Session, top_logprobs: int) -> list[SampledToken | None]:
        """Read the next chunk and return the log-probability of each of its tokens, None for the first token of all.

        `top_logprobs`: how many of the likeliest tokens come with each.
        """
        before, ids = session.logits, session.pending_ids[:PREFILL_CHUNK_TOKENS]
        logits = self._forward_model(session)[0].float().cpu()
        session.logits = logits[-1]
        found: list[SampledToken | None] = [] if before is not None else [None]
        rows = logits[:-1] if before is None else torch.cat([before[None], logits[:-1]])
        return found + [
            with_logprobs(token, row, top_logprobs)
            for token, row in zip(ids[len(found) :], rows, strict=True)
        ]

    @torch.inference_mode()
    def embed_chunk(self, session: Session) -> Tensor:
        """Read the next chunk; returns the sum of its tokens' last hidden states, (D,) float32 on the CPU."""
        hidden: Tensor = self._forward_model(session, self.model.get_decoder())
        return hidden[0].float().sum(dim=0).cpu()

    def _forward_model(self, session: Session, model: Any = None, **options: Any) -> Tensor:
        """Read a segment by the model, or by its backbone: the first of what that returns."""
        apply_adapters(self.model, session.adapters)
        ids = torch.tensor([session.pending_ids[:PREFILL_CHUNK_TOKENS]], device=self.device)
        reading = {self._cache_argument: session.writable_state(), "use_cache": True}
        out = (model or self.model)(input_ids=ids, **reading, **options)
        del session.pending_ids[:PREFILL_CHUNK_TOKENS]
        first: Tensor = out[0]
        return first

    def require_tokens(self, ids: Collection[int], where: str = "") -> None:
        """Raise ConfigError for ids that are no tokens of the model: the kernels look at no bounds."""
        vocabulary = self.model.config.vocab_size
        for token in (min(ids, default=0), max(ids, default=0)):
            if not 0 <= token < vocabulary:
                raise ConfigError(
                    f"{where}there is no token {token}: this model's go from 0 to {vocabulary - 1:,}"
                )

    def require_room(self, tokens: int) -> None:
        """Raise UserError where a session cannot hold that many tokens."""
        if self.context_limit is not None and tokens > self.context_limit:
            raise UserError(
                f"this model reads at most {self.context_limit:,} tokens, and {tokens:,} are needed. "
                "Give it less text, or start anew"
            )

    @torch.inference_mode()
    def generate_greedy(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_ids: Collection[int]
    ) -> list[list[int]]:
        """The likeliest continuation of each prompt, all decoded together; a stop token ends it, left out."""
        longest = max(len(prompt) for prompt in prompts)
        self.require_room(longest + max_new_tokens)
        if self._decoder is None and self._supports_left_padding:
            ends = sorted(stop_ids) or None
            config = GenerationConfig(
                max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=0, do_sample=False
            )
            rows = generate_padded(self.model, prompts, config).sequences[:, longest:].tolist()
            return [_cut_at_stop(row, stop_ids) for row in rows]
        sessions = [self.session() for _ in prompts]
        for session, prompt in zip(sessions, prompts, strict=True):
            session.append(prompt)
        replies: list[list[int]] = [[] for _ in prompts]
        going = list(zip(sessions, replies, strict=True))
        for _ in range(max_new_tokens):
            self.forward([session for session, _ in going])
            for session, reply in going:
                assert session.logits is not None
                session.append([int(session.logits.argmax())])
                reply.extend(session.pending_ids)
            going = [(session, reply) for session, reply in going if reply[-1] not in stop_ids]
            if not going:
                break
        return [_cut_at_stop(reply, stop_ids) for reply in replies]

    @cached_property
    def _supports_left_padding(self) -> bool:
        """Return whether transformers generates from left-padded prompts what sessions do, tried on a few tokens.

        It does not where positions are counted from the row's beginning (BART), or layers read the padding (Mamba).
        """
        ids = [place % self.model.config.vocab_size for place in range(1, 13)]
        config = GenerationConfig(do_sample=False, max_new_tokens=3, pad_token_id=0, output_logits=True)
        found = generate_padded(self.model, [ids, ids[:5]], config)
        session, exact = self.session(), 0.05 if self.model.dtype.itemsize == 2 else 1e-3
        new = found.sequences[1, len(ids) :].tolist()
        for tokens, logits in zip([ids[:5], *([one] for one in new)], found.logits, strict=False):
            session.append(tokens)
            expected = session.next_logits()
            if not (logits[1].float().cpu() - expected).norm() <= exact * expected.norm():
                return False
        return True


class Session:
    """One sequence of tokens being read and written: a conversation, a completion.

    `length` counts its tokens. `ended` says whether the last `generate` met a stop token.
    """

    def __init__(self, engine: Engine, adapters: dict[str, float]) -> None:
        self.engine, self.adapters = engine, adapters
        self.length = 0
        self.ended = False
        self._state: SequenceState | None = None  # made on first use: a session may wait long for its turn
        self._is_shared = False
        self.logits: Tensor | None = None  # (V,) float32 on the CPU, after the last token that was read
        self.pending_ids: list[int] = []  # chosen tokens are read only when something follows them
        self.recent: deque[int] = deque(maxlen=RECENT_TOKENS)

    @property
    def state(self) -> SequenceState:
        """The state of all tokens read, not to be changed."""
        if self._state is None:
            self._state = new_state(self.engine.model, self.engine.model.dtype, self.engine.device)
        return self._state

    @state.setter
    def state(self, state: SequenceState) -> None:
        self._state, self._is_shared = state, False

    def writable_state(self) -> SequenceState:
        """Return the state to write to: a copy, where a fork shares it (copy on write)."""
        if self._is_shared:
            self.state = self.state.copy()
        return self.state

    def prefill(self, ids: Sequence[int]) -> None:
        """Read tokens, in chunks that bound the memory needed.

        Raises UserError, with nothing read, where they pass the model's context limit.
        """
        self.engine.require_room(self.length + len(ids))
        self.append(ids)
        self.engine.forward([self])

    def generate(self, sampling: SamplingParams, stop_ids: Collection[int] = ()) -> Iterator[int]:
        """Yield the tokens that follow, each chosen when it is asked for; they belong to the session from then on.

        A stop token is neither yielded nor read. Ends with `max_new_tokens` or at the context limit; raises
        UserError where there is no room for one token.
        """
        generation = Generation(self, sampling, stop_ids)
        while not generation.finish_reason:
            self.engine.forward([self])
            chosen = generation.step()
            if chosen is not None:
                yield chosen.token

    def release(self) -> None:
        """Leave the decoder, for the engine's thread to call: others may then read the state."""
        if self._state is not None:
            self.engine.release(self._state)

    def next_logits(self) -> Tensor:
        """Logits (V,) of the next token, float32 on the CPU; raises ValueError where nothing was fed."""
        self.engine.forward([self])
        if self.logits is None:
            raise ValueError("nothing has been read yet: feed a token first, for example the tokenizer's bos")
        return self.logits

    def fork(self) -> Session:
        """An independent session that has read the same; their state is copied when one of them goes on."""
        other = Session(self.engine, self.adapters)
        other.length, other.logits = self.length, self.logits
        other.pending_ids, other.recent = list(self.pending_ids), self.recent.copy()
        other._state = self._state
        other._is_shared = self._is_shared = self._state is not None
        return other

    def save(self, path: Path, state_fingerprint: Mapping[str, str]) -> None:
        """Write what was read to a file, to go on there later; `state_fingerprint`: fingerprints of model, layout, ….

        MM-Rec's file (not a hybrid's) has one size, however much was read.
        """
        extra = {"length": torch.tensor(self.length), "recent": _padded(self.recent)}
        extra["unread"] = _padded(self.pending_ids)
        if self.logits is not None:
            extra["logits"] = self.logits
        notes = {**state_fingerprint, "adapters": json.dumps(self.adapters, sort_keys=True)}
        save_state(path, self.state, notes, extra)

    def append(self, ids: Sequence[int]) -> None:
        """Take tokens that will be read when something follows them; raises ConfigError for ids that are none."""
        self.engine.require_tokens(ids)
        self.pending_ids += ids
        self.recent.extend(ids)
        self.length += len(ids)


class Generation:
    """The tokens that follow a session, one at a time; the caller has the session read each before the next.

    `finish_reason` is "" while it goes on, then "stop" after a stop token or at the end of a constraint, and "length"
    after the last that may be written. `logprobs`: so many of the likeliest tokens come with each, None for no
    probabilities. `stop_token`: the stop token that ended it, which is not part of the session.
    """

    def __init__(
        self, session: Session, sampling: SamplingParams, stop_ids: Collection[int] = (),
        constraint: Constraint | None = None, logprobs: int | None = None,
    ) -> None:  # fmt: skip
        """Raises UserError where there is no room for one token, or a bias names no token."""
        session.engine.require_room(session.length + 1)
        session.engine.require_tokens(sampling.logit_bias, "logit_bias: ")
        session.ended = False
        self.session, self.finish_reason = session, ""
        self.stop_token: SampledToken | None = None
        self._sampler = Sampler(sampling, session.recent)
        self._remaining, self._stop_ids = sampling.max_new_tokens, stop_ids
        self._constraint, self._logprobs = constraint, logprobs

    def step(self) -> SampledToken | None:
        """Sample the next token and append it to the session; None where nothing follows."""
        session, constraint, logits = self.session, self._constraint, self.session.next_logits()
        remaining = min(self._remaining, (session.engine.context_limit or sys.maxsize) - session.length)
        if constraint is None:
            token = self._sampler.sample(logits)
        else:
            token = constraint.sample(logits, remaining, self._sampler.sample)
        if token in self._stop_ids:
            self.stop_token = self._sampled_token(token, logits)
            self._stop()
            return None
        if constraint is not None:
            constraint.accept_token(token)
        session.append([token])
        self._sampler.record(token)
        self._remaining -= 1
        if constraint is not None and constraint.is_stopped:
            self._stop()
        elif remaining <= 1:
            # What a grammar calls whole is whole, though there was no token left to say so.
            self.finish_reason = "stop" if constraint is not None and constraint.is_accepting else "length"
        return self._sampled_token(token, logits)

    def _stop(self) -> None:
        self.finish_reason, self.session.ended = "stop", True

    def _sampled_token(self, token: int, logits: Tensor) -> SampledToken:
        return SampledToken(token) if self._logprobs is None else with_logprobs(token, logits, self._logprobs)


def _padded(ids: Collection[int]) -> Tensor:
    """Ids as int64, filled up with −1: a file of few has the size of one of many."""
    return torch.tensor([*ids, *[-1] * (RECENT_TOKENS - len(ids))])


def _cut_at_stop(ids: list[int], stop_ids: Collection[int]) -> list[int]:
    end = next((place for place, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[:end]
