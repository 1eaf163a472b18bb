"""The tokens of a text with the borders of its sentences among them, so that it can be cut without encoding it anew.

A text is encoded once; a sentence begins with the token that holds its first letter (" The": the space stays with the
word) and ends with the one that holds its last mark.

Shapes: S sentences, T tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from mm_rec.text.sentences import split_sentences
from mm_rec.tokenizers.loading import text_encoder

_RUN = 50_000  # characters that are encoded as one text
_BATCH = 1_000_000  # characters that are encoded at once, on all threads

Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A text, and of each sentence the first character and the one after its last, (S, 2)."""

    text: str
    sentences: Places


@dataclass(frozen=True, slots=True)
class PartTokens:
    """A part's ids (T,), with the first character of each token and the one after its last; and of each sentence the
    first token and the one after its last, (S,).
    """

    text: str
    ids: NDArray[np.int32]
    starts: Places
    ends: Places
    begins: Places
    stops: Places


def sentence_spans(text: str, language_code: str) -> Places:
    """Start and end of each sentence, (S, 2) characters, without the white space around it."""
    spans, end = [], 0
    for sentence in split_sentences(text, language_code):
        start = text.index(sentence, end)  # nothing but white space stands between
        end = start + len(sentence)
        spans.append((start, end))
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def tokenized(parts: Iterable[Part], tokenizer: PreTrainedTokenizerBase) -> Iterator[PartTokens]:
    """The tokens of parts, in order; a part has at least one sentence and no white space around it."""
    encoded = (
        (run.part, _run_tokens(run, encoding))
        for batch in _batches(run for part in parts for run in _runs(part))
        for run, encoding in zip(batch, _encoded(tokenizer, [run.text for run in batch]), strict=True)
    )
    for _, runs in itertools.groupby(encoded, key=lambda pair: pair[0]):
        yield _joined([tokens for _, tokens in runs])


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Encoding]:
    encodings: list[Encoding] = text_encoder(tokenizer, texts).encode_batch(texts, add_special_tokens=False)
    return encodings


@dataclass(frozen=True, slots=True)
class _Run:
    """Sentences first … stop − 1 of a part, encoded together: an Encoding takes 20 times its text, so none gets large.

    The text goes from the sentence before the first to the white space after the last, so that the tokens at both ends
    are those of running text.
    """

    part: Part
    first: int
    stop: int

    @property
    def lead(self) -> int:
        """The sentence that the text begins with."""
        return max(0, self.first - 1)

    @property
    def text(self) -> str:
        """What is encoded."""
        sentences = self.part.sentences
        end = sentences[self.stop, 0] if self.stop < len(sentences) else len(self.part.text)
        return self.part.text[sentences[self.lead, 0] : end]


def _runs(part: Part) -> Iterator[_Run]:
    first, ends = 0, part.sentences[:, 1]
    while first < len(ends):
        stop = int(np.searchsorted(ends, part.sentences[first, 0] + _RUN, side="right"))
        stop = max(first + 1, stop)
        yield _Run(part, first, stop)
        first = stop


def _batches(runs: Iterable[_Run]) -> Iterator[list[_Run]]:
    """Runs by about _BATCH characters."""
    batch: list[_Run] = []
    size = 0
    for run in runs:
        batch.append(run)
        size += len(run.text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _run_tokens(run: _Run, encoding: Encoding) -> PartTokens:
    """The tokens of a run's own sentences and the white space before them; characters are counted in the part."""
    sentences = run.part.sentences[run.lead : run.stop]
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) + sentences[0, 0]
    starts, ends = np.ascontiguousarray(offsets.T)
    begins = np.searchsorted(ends, sentences[:, 0], side="right")
    stops = np.searchsorted(starts, sentences[:, 1])
    own = run.first - run.lead
    cut = int(stops[0]) if own else 0
    if not own:
        begins[0] = 0  # some tokenizers put a token of their own before a text
    kept = slice(cut, int(stops[-1]))
    ids = np.array(encoding.ids, dtype=np.int32)
    return PartTokens(
        run.part.text, ids[kept], starts[kept], ends[kept], begins[own:] - cut, stops[own:] - cut
    )


def _joined(runs: list[PartTokens]) -> PartTokens:
    """The runs of a part as one; sentences that share a token, which cannot be cut, become one sentence."""
    first = np.cumsum([0, *(len(run.ids) for run in runs)])
    begins = np.concatenate([run.begins + place for run, place in zip(runs, first[:-1], strict=True)])
    stops = np.concatenate([run.stops + place for run, place in zip(runs, first[:-1], strict=True)])
    apart = begins[1:] >= stops[:-1]
    return PartTokens(
        runs[0].text,
        np.concatenate([run.ids for run in runs]),
        np.concatenate([run.starts for run in runs]),
        np.concatenate([run.ends for run in runs]),
        begins[np.r_[True, apart]],
        stops[np.r_[apart, True]],
    )
