"""Chunk raw text into blocks to fine-tune on: whole sentences up to a chunk length, never across a hard cut.

The rules are those of Training PRO of text-generation-webui, by its own names. A text is split at the hard-cut string
into parts, and a part into sentences by the rules of its language; a block takes sentences of one part until its chunk
is full. With `overlap`, a block that starts at the sentence in the middle of the first stands between each two
neighbours, so that what is cut apart in one block stands together in another; a part that fits into one block has no
such copy of its half. With `sliding_window` a block starts at every sentence. Neither makes a block that is only the
end of the one before it.

A part is encoded once and its blocks are cut out of its tokens, so that they are the tokens of running text: a block
from the middle of a part begins with " The", the space with its word, and white space that is a token of its own before
its first word belongs to no block. White space within a block is that of the text.

Shapes: T tokens of a block, S sentences of a part.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from mm_rec.data.conversations.rendering import TokenizedExample
from mm_rec.data.sections import Chunking, LongSentences
from mm_rec.data.sentence_tokens import SegmentedText, TokenizedText, sentence_spans, tokenize_texts
from mm_rec.errors import DataError
from mm_rec.sources.documents import Document, find_files, read_documents
from mm_rec.sources.locations import SourceFile
from mm_rec.tokenizers.loading import bos_ids, count_special_tokens, describe_special_tokens

Ids = NDArray[np.int32]

_LONGEST_EXAMPLE = 4  # chunks; a longer part is a text to be cut rather than an example to be held whole
_DIGITS = re.compile(r"(\d+)")


@dataclass(slots=True)
class ChunkedText:
    """The blocks of texts in their order, and what happened to the rest. Lengths are tokens, with BOS and EOS."""

    settings: Chunking
    blocks: list[TokenizedExample] = field(default_factory=list)
    parts: int = 0
    longest_part: int = 0
    longest_example: int = 0  # the longest part that is short enough to be held whole
    overlapping: int = 0  # of the blocks, those that `overlap` added
    long_sentences: int = 0
    lost_tokens: int = 0
    small_blocks: int = 0
    unmarked_blocks: int = 0
    specials: Counter[str] = field(default_factory=Counter)  # written out in the text
    not_added: list[str] = field(default_factory=list)  # why BOS or EOS is not, though it was asked for

    @property
    def lengths(self) -> list[int]:
        """Tokens of each block, the longest first."""
        return sorted((len(block.ids) for block in self.blocks), reverse=True)

    @property
    def tokens(self) -> int:
        """Tokens of all blocks."""
        return sum(self.lengths)

    @property
    def suggested_chunk_length(self) -> int:
        """The next multiple of 32 that holds every part, those that are long texts left out; or else every block."""
        needed = self.longest_example or self.lengths[0]
        return -(-needed // 32) * 32

    def notes(self) -> list[str]:
        """Report text that was changed or left out, a line each; [] where all is whole."""
        settings, notes = self.settings, []
        if self.long_sentences:
            done = {"split": "split", "trim": "trimmed", "drop": "left out"}[settings.too_long]
            lost = f" ({self.lost_tokens:,} tokens lost)" if self.lost_tokens else ""
            notes.append(
                f"sentences longer than {settings.chunk_length} tokens, {done}: {self.long_sentences:,}{lost}"
            )
        if self.small_blocks:
            notes.append(f"blocks under {settings.min_chars} characters, left out: {self.small_blocks:,}")
        if self.unmarked_blocks:
            marker = settings.train_only_after
            notes.append(f"blocks with nothing after {marker!r}, left out: {self.unmarked_blocks:,}")
        notes += describe_special_tokens(self.specials)
        notes += [f"the tokenizer {reason}, so none is added" for reason in self.not_added]
        return notes


def read_text_files(paths: Iterable[SourceFile | str]) -> Iterator[Document]:
    """The .txt files of files, folders, globs and URLs in natural order (part2 before part10), each a document.

    UTF-8, also .gz or .zst; raises DataError naming file, line and remedy for what cannot be read.
    """
    for file in sorted(find_files(paths, kinds=("txt",)), key=_natural):
        yield from read_documents([file], documents="file")


def _natural(file: SourceFile) -> list[tuple[int, str]]:
    """A key by which numbers within names count as numbers."""
    pieces = _DIGITS.split(str(file))
    return [(int(piece), "") if number % 2 else (0, piece) for number, piece in enumerate(pieces)]


def chunk_text(text: str, tokenizer: PreTrainedTokenizerBase, settings: Chunking) -> ChunkedText:
    """Chunk one text; see `chunk_documents`."""
    return chunk_documents([Document(text, Path("text"), 1)], tokenizer, settings)


def chunk_documents(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, settings: Chunking
) -> ChunkedText:
    """Chunk texts into blocks, none across two texts.

    All tokens but BOS are trained on, or those after `train_only_after`. BOS that begins a part and EOS that ends one
    are not doubled; elsewhere a special token that is written out is text. Raises DataError where no block results.
    """
    chunks = ChunkedText(settings)
    before, after = _edges(tokenizer, chunks)
    capacity = settings.chunk_length - len(before) - len(after)
    marks = (str(tokenizer.bos_token) if len(before) else "", str(tokenizer.eos_token) if len(after) else "")
    parts = (part for document in documents for part in _parts(document, marks, settings))
    for part in tokenize_texts(_counted(parts, tokenizer, chunks), tokenizer):
        _measure_part(chunks, len(part.ids) + len(before) + len(after))
        fitted = _fitted(part, capacity, chunks)
        for first, stop, overlaps in _blocks(fitted, capacity, settings):
            ends_part = stop == len(part.ids)
            eos = after if settings.eos_placement == "every_block" or ends_part else after[:0]
            block = _rendered(part, first, stop, settings.train_only_after)
            if len(block.text.strip()) < settings.min_chars:
                chunks.small_blocks += 1
            elif not block.loss_mask.any():
                chunks.unmarked_blocks += 1
            else:
                chunks.blocks.append(_framed(block, before, eos))
                chunks.overlapping += overlaps
    _require_blocks(chunks)
    return chunks


def _edges(tokenizer: PreTrainedTokenizerBase, chunks: ChunkedText) -> tuple[Ids, Ids]:
    """The ids to put before and after blocks, (0 or 1,) each; what is asked for and not added is noted."""
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    settings = chunks.settings
    edges = (
        (settings.add_bos, bos_ids(tokenizer), "puts no BOS before a text"),
        (settings.add_eos, eos, "has no EOS token"),
    )
    chunks.not_added += [reason for wanted, ids, reason in edges if wanted and not ids]
    before, after = (np.array(ids if wanted else [], dtype=np.int32) for wanted, ids, _ in edges)
    return before, after


def _parts(document: Document, marks: tuple[str, str], settings: Chunking) -> Iterator[SegmentedText]:
    """Split a document at its hard cuts; white space and marks (BOS, EOS) around a part are cut off."""
    text = document.text.replace("\r\n", "\n").replace("\r", "\n")
    for piece in text.split(settings.hard_cut) if settings.hard_cut else [text]:
        core = piece.strip().removeprefix(marks[0]).lstrip().removesuffix(marks[1]).rstrip()
        if core:
            yield SegmentedText(core, sentence_spans(core, settings.language))


def _counted(
    parts: Iterator[SegmentedText], tokenizer: PreTrainedTokenizerBase, chunks: ChunkedText
) -> Iterator[SegmentedText]:
    for part in parts:
        chunks.specials.update(count_special_tokens(tokenizer, [part.text]))
        yield part


def _measure_part(chunks: ChunkedText, tokens: int) -> None:
    chunks.parts += 1
    chunks.longest_part = max(chunks.longest_part, tokens)
    if tokens <= _LONGEST_EXAMPLE * chunks.settings.chunk_length:
        chunks.longest_example = max(chunks.longest_example, tokens)


def _fitted(part: TokenizedText, capacity: int, chunks: ChunkedText) -> TokenizedText:
    """The part with every sentence within the chunk: longer ones are split, trimmed or left out, and counted.

    The tokens stay where they are; those that are lost lie between sentences and take up more than a chunk there, so
    no block reaches over them.
    """
    if not (part.sentence_stops - part.sentence_starts > capacity).any():
        return part
    kept: list[tuple[int, int]] = []
    for begin, stop in zip(part.sentence_starts.tolist(), part.sentence_stops.tolist(), strict=True):
        pieces = [(begin, stop)]
        if stop - begin > capacity:
            pieces = _pieces(part, begin, stop, capacity, chunks.settings.too_long)
            chunks.long_sentences += 1
            chunks.lost_tokens += stop - begin - sum(end - start for start, end in pieces)
        kept += pieces
    begins, stops = np.array(kept, dtype=np.int64).reshape(-1, 2).T
    return replace(part, sentence_starts=begins, sentence_stops=stops)


def _pieces(
    part: TokenizedText, begin: int, stop: int, capacity: int, too_long: LongSentences
) -> list[tuple[int, int]]:
    """Cut a sentence over the capacity; all, the first or none of its pieces stay."""
    if too_long == "drop":
        return []
    places = [begin]
    while stop - places[-1] > capacity:
        places.append(_border(part, places[-1], capacity))
    pieces = list(pairwise([*places, stop]))
    return pieces if too_long == "split" else pieces[:1]


def _border(part: TokenizedText, begin: int, capacity: int) -> int:
    """The last token within the capacity with white space at its start; where none has, one that begins a character."""
    places = range(begin + capacity, begin, -1)
    whole = [place for place in places if part.token_ends[place - 1] <= part.token_starts[place]]
    words = (place for place in whole if part.text[part.token_starts[place]].isspace())
    return next(words, whole[0] if whole else begin + capacity)


def _blocks(part: TokenizedText, capacity: int, settings: Chunking) -> Iterator[tuple[int, int, bool]]:
    """First token of each block, the one after its last, and whether `overlap` added it; in the order of the text."""
    begins, stops = part.sentence_starts, part.sentence_stops
    after = np.searchsorted(stops, begins + capacity, side="right")  # the sentence behind the last that fits
    if settings.sliding_window:
        for first in np.flatnonzero(np.diff(after, prepend=0)).tolist():
            yield int(begins[first]), int(stops[after[first] - 1]), False
        return
    first = 0
    while first < len(begins):
        last = int(after[first])
        yield int(begins[first]), int(stops[last - 1]), False
        middle = (begins[first] + stops[last - 1]) // 2
        half = max(first + 1, int(np.searchsorted(begins, middle, side="right")) - 1)
        if settings.overlap and half < last and after[half] > last:
            yield int(begins[half]), int(stops[after[half] - 1]), True
        first = last


def _rendered(part: TokenizedText, first: int, stop: int, marker: str) -> TokenizedExample:
    """Return the block of tokens first … stop − 1, trained on as a whole, or from after the marker on."""
    starts = part.token_starts[first:stop]
    text = part.text[starts[0] : part.token_ends[stop - 1]]
    place = text.find(marker)
    # A space at the marker's end is of the token of the word after it.
    loss_mask = (starts >= starts[0] + place + len(marker.rstrip(" "))) & (place >= 0)
    return TokenizedExample(text, part.ids[first:stop], loss_mask)


def _framed(block: TokenizedExample, before: Ids, after: Ids) -> TokenizedExample:
    """Add BOS, which is not trained on, and EOS, which is."""
    ids = np.concatenate([before, block.ids, after])
    loss_mask = np.ones(len(ids), dtype=bool)
    loss_mask[: len(before)] = False
    loss_mask[len(before) : len(before) + len(block.ids)] = block.loss_mask
    return TokenizedExample(block.text, ids, loss_mask)


def _require_blocks(chunks: ChunkedText) -> None:
    """Raise DataError where no block came out, with what to change."""
    if chunks.blocks:
        return
    settings = chunks.settings
    if not chunks.parts:
        reason = "there is no text in it. Give other files"
    elif chunks.unmarked_blocks:
        reason = (
            f"nothing follows {settings.train_only_after!r} in any block. Correct or clear train_only_after"
        )
    elif chunks.small_blocks:
        reason = f"every block has under {settings.min_chars} characters. Lower min_chars"
    else:
        reason = "every sentence is longer than the chunk. Raise chunk_length, or choose too_long: split"
    raise DataError(f"the text gives no block to train on: {reason}")
