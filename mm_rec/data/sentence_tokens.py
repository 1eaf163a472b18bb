"""Tokenize a text and find its sentences among the tokens, so that it can be cut without encoding it again.

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

_WINDOW_CHARACTERS = 50_000  # characters that are encoded as one text
_BATCH_CHARACTERS = 1_000_000  # characters that are encoded at once, on all threads

Offsets = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class SegmentedText:
    """A text, and of each sentence the first character and the one after its last, (S, 2)."""

    text: str
    sentences: Offsets


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A part's ids (T,), with the first character of each token and the one after its last; and of each sentence the
    first token and the one after its last, (S,).
    """

    text: str
    ids: NDArray[np.int32]
    token_starts: Offsets
    token_ends: Offsets
    sentence_starts: Offsets
    sentence_stops: Offsets


def sentence_spans(text: str, language_code: str) -> Offsets:
    """Start and end of each sentence, (S, 2) characters, without the white space around it."""
    spans, end = [], 0
    for sentence in split_sentences(text, language_code):
        start = text.index(sentence, end)  # nothing but white space stands between
        end = start + len(sentence)
        spans.append((start, end))
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def tokenize_texts(
    parts: Iterable[SegmentedText], tokenizer: PreTrainedTokenizerBase
) -> Iterator[TokenizedText]:
    """Tokenize texts, in order; a part has at least one sentence and no white space around it."""
    encoded = (
        (window.part, _window_tokens(window, encoding))
        for batch in _batches(window for part in parts for window in _encoding_windows(part))
        for window, encoding in zip(
            batch, _encoded(tokenizer, [window.text for window in batch]), strict=True
        )
    )
    for _, windows in itertools.groupby(encoded, key=lambda pair: pair[0]):
        yield _joined([tokens for _, tokens in windows])


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Encoding]:
    encodings: list[Encoding] = text_encoder(tokenizer, texts).encode_batch(texts, add_special_tokens=False)
    return encodings


@dataclass(frozen=True, slots=True)
class _EncodingWindow:
    """Sentences first … stop − 1 of a part, encoded together: an Encoding takes 20 times its text, so none gets large.

    The text goes from the sentence before the first to the white space after the last, so that the tokens at both ends
    are those of running text.
    """

    part: SegmentedText
    first: int
    stop: int

    @property
    def lead(self) -> int:
        """The sentence that the text begins with."""
        return max(0, self.first - 1)

    @property
    def text(self) -> str:
        """The text to encode."""
        sentences = self.part.sentences
        end = sentences[self.stop, 0] if self.stop < len(sentences) else len(self.part.text)
        return self.part.text[sentences[self.lead, 0] : end]


def _encoding_windows(part: SegmentedText) -> Iterator[_EncodingWindow]:
    first, ends = 0, part.sentences[:, 1]
    while first < len(ends):
        stop = int(np.searchsorted(ends, part.sentences[first, 0] + _WINDOW_CHARACTERS, side="right"))
        stop = max(first + 1, stop)
        yield _EncodingWindow(part, first, stop)
        first = stop


def _batches(windows: Iterable[_EncodingWindow]) -> Iterator[list[_EncodingWindow]]:
    """Group windows by about _BATCH_CHARACTERS characters."""
    batch: list[_EncodingWindow] = []
    size = 0
    for window in windows:
        batch.append(window)
        size += len(window.text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _window_tokens(window: _EncodingWindow, encoding: Encoding) -> TokenizedText:
    """Return the tokens of a window's own sentences and the white space before them; offsets are those of the text."""
    sentences = window.part.sentences[window.lead : window.stop]
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) + sentences[0, 0]
    starts, ends = np.ascontiguousarray(offsets.T)
    begins = np.searchsorted(ends, sentences[:, 0], side="right")
    stops = np.searchsorted(starts, sentences[:, 1])
    own = window.first - window.lead
    cut = int(stops[0]) if own else 0
    if not own:
        begins[0] = 0  # some tokenizers put a token of their own before a text
    kept = slice(cut, int(stops[-1]))
    ids = np.array(encoding.ids, dtype=np.int32)
    return TokenizedText(
        window.part.text, ids[kept], starts[kept], ends[kept], begins[own:] - cut, stops[own:] - cut
    )


def _joined(windows: list[TokenizedText]) -> TokenizedText:
    """Join the windows of a text; sentences that share a token, which cannot be cut, become one sentence."""
    first = np.cumsum([0, *(len(window.ids) for window in windows)])
    begins = np.concatenate(
        [window.sentence_starts + place for window, place in zip(windows, first[:-1], strict=True)]
    )
    stops = np.concatenate(
        [window.sentence_stops + place for window, place in zip(windows, first[:-1], strict=True)]
    )
    apart = begins[1:] >= stops[:-1]
    return TokenizedText(
        windows[0].text,
        np.concatenate([window.ids for window in windows]),
        np.concatenate([window.token_starts for window in windows]),
        np.concatenate([window.token_ends for window in windows]),
        begins[np.r_[True, apart]],
        stops[np.r_[apart, True]],
    )
