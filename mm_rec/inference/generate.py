"""Generate text: encode prompts to ids, and detokenize ids as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.inference.engine import Session
from mm_rec.inference.sampler import SamplingParams
from mm_rec.tokenizers.assistant_format import eot_token_ids
from mm_rec.tokenizers.conversion import ESCAPES
from mm_rec.tokenizers.loading import bos_ids, text_encoder

# How the text of tokens ends that need the next one: in the middle of a character, or of an escape.
_UNFINISHED = ("\ufffd", ESCAPES[0][0])
_LONGEST_UNIT = 6  # bytes, so tokens that a character or an escape can be spread over


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a prompt, begun as the documents of training are: as the tokenizer itself begins a text.

    Special tokens that are written out in it are text, as in training. What a chat template rendered has its own
    beginning: see `encode_rendered`.
    """
    return [*bos_ids(tokenizer), *encode_text(tokenizer, text)]


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text that continues another; special tokens that are written out in it are text."""
    ids: list[int] = text_encoder(tokenizer, [text]).encode(text, add_special_tokens=False).ids
    return ids


def encode_rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of what a chat template rendered, or a part of it; special tokens in it are parsed, none is added."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def stop_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> frozenset[int]:
    """The ids that end a text: the tokenizer's eos, what ends an answer in its chat template, and every end that the
    model's generation configuration names.
    """
    named = getattr(model.generation_config, "eos_token_id", None)
    ends = named if isinstance(named, list) else [named]
    return eot_token_ids(tokenizer) | {int(end) for end in ends if end is not None}


class IncrementalDetokenizer:
    """Turns ids into text as they come: whole characters only, cut before a stop string.

    Text that may be the start of a stop string is held back until it is known. `stopped` says that one was met.
    Special tokens are left out, unless `special` asks for them.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = (), special: bool = False
    ) -> None:
        self.stopped = False
        self._tokenizer, self._skip_special = tokenizer, not special
        self._stop = tuple(stop)
        # Tokens whose text is not known yet, and those before them: some decoders treat a text's start differently.
        self._ids: list[int] = []
        self._before: list[int] = []
        self._held = ""

    def push(self, token: int) -> str:
        """Take one token; returns the text that is now certain, which may be empty."""
        if self.stopped:
            return ""
        self._ids.append(token)
        text = self._decode_new()
        if text.endswith(_UNFINISHED) and len(self._ids) < _LONGEST_UNIT:
            return ""
        return self._take(text)

    def finish(self) -> str:
        """The text still held back, at the end of the tokens."""
        if self.stopped:
            return ""
        text = self._take(self._decode_new() if self._ids else "")
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _decode_new(self) -> str:
        """The text of the new tokens, as it is after the tokens before them."""
        before, both = (self._decode(ids) for ids in (self._before, self._before + self._ids))
        # A broken run of bytes also changes how the bytes before it decode; their text is already given out.
        return both[len(before) :] if both.startswith(before) else self._decode(self._ids)

    def _decode(self, ids: list[int]) -> str:
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=self._skip_special, clean_up_tokenization_spaces=False
            )
        )

    def _take(self, text: str) -> str:
        """Give out new text up to a stop string, or to what may become one."""
        if self._ids:
            self._before, self._ids = self._ids, []
        text = self._held + text
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        certain = len(text) - max((partial_match_length(text, stop) for stop in self._stop), default=0)
        self._held = text[certain:]
        return text[:certain]


def partial_match_length(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a start of `stop` but not all of it."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)


class TextDelta(NamedTuple):
    """A token of a text as it is generated, and the text that is certain with it; at the end perhaps text alone."""

    text: str
    token: int | None


def generate_deltas(
    session: Session, tokenizer: PreTrainedTokenizerBase, sampling: SamplingParams
) -> Iterator[TextDelta]:
    """Yield each token that follows what the session has read, up to eos or a stop string.

    The session's `ended` is then true for both.
    """
    stream = IncrementalDetokenizer(tokenizer, sampling.stop)
    for token in session.generate(sampling, stop_ids(tokenizer, session.engine.model)):
        yield TextDelta(stream.push(token), token)
        if stream.stopped:
            break
    if text := stream.finish():
        yield TextDelta(text, None)
    session.ended = session.ended or stream.stopped


def generate_text(
    session: Session, tokenizer: PreTrainedTokenizerBase, sampling: SamplingParams
) -> Iterator[str]:
    """Yield the text of `generate_deltas`, piece by piece."""
    return (delta.text for delta in generate_deltas(session, tokenizer, sampling) if delta.text)
