"""Stream training batches from text: read, encoded and packed as needed; only checkpoints are written.

What a checkpoint needs to go on with the very next token is all there: how far each source was read, the tokens that
fill no row yet, and the contents of the shuffle buffer.
Notation: B rows of a batch, T tokens of a row, R rows of the buffer, N tokens.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mm_rec.data.batches import RowBatches
from mm_rec.data.mixture import Mixture
from mm_rec.data.prepare import SplitName, read_split
from mm_rec.data.row_sources import Flags, Ids, Rows, rows_of_text, source_seed
from mm_rec.data.split import document_hash
from mm_rec.errors import CheckpointError, DataError
from mm_rec.sources.documents import choose_documents_rule, find_files, read_documents
from mm_rec.sources.locations import SourceFile, file_size
from mm_rec.sources.sections import DocumentsRule
from mm_rec.tokenizers.loading import count_special_tokens, encode_documents, fingerprint

_BATCH_CHARACTERS = 2**16  # text that is read and encoded at once
_DRAWS = 1024  # random words made at once


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamSource:
    """The files of a source, and which of their documents never enter training.

    Those are the documents with a hash below `threshold`, or, where separate files are held out, in `held_out`.
    """

    name: str
    files: list[SourceFile]
    text_field: str
    documents: DocumentsRule
    threshold: float
    validation_files: list[SourceFile]
    held_out: frozenset[float]

    def texts(self, split_name: SplitName) -> Iterator[str]:
        """Stream the documents of one side once, file after file."""
        return read_split(
            split_name,
            self.files,
            self.validation_files,
            self.text_field,
            self.documents,
            self._split_document,
        )

    def _split_document(self, text: str) -> tuple[str | None, str | None]:
        key = document_hash(text)
        return (text if self.in_training(key) else None), (text if key < self.threshold else None)

    def in_training(self, key: float) -> bool:
        """Return True if a document of this hash may enter training."""
        return key >= self.threshold and key not in self.held_out

    def record(self) -> dict[str, Any]:
        """Return where the text came from, for the run's lineage."""
        return {
            "files": [str(file) for file in self.files],
            "bytes": self.size(),
            "held_out_below": self.threshold,
        }

    def size(self) -> int:
        """Bytes of the files as they are stored, packed or not; 0 where a server does not say."""
        sizes = [file_size(file) or 0 for file in self.files]
        return sum(sizes) if all(sizes) else 0


def first_held_out(source: StreamSource, tokenizer: Any, tokens: int) -> Iterator[str]:
    """The first held-out documents of a source that together have `tokens` tokens or a little more, or all."""
    taken = 0
    for text in source.texts("validation"):
        if taken >= tokens:
            return
        taken += len(encode_documents(tokenizer, [text])[0])
        yield text
    if not taken:
        raise DataError(
            f"of the source {source.name!r} no document is held out, because it has few. Leave out --stream, "
            "cut it into more with --documents line, raise data.validation_fraction, or name --validation FILES"
        )


class DocumentReader:
    """The training documents of a source, without end: file after file, the files in another order every epoch."""

    def __init__(self, source: StreamSource, seed: int) -> None:
        self.source = source
        self.epoch = 0
        self._seed = source_seed(seed, source.name + "\0files")
        self._finished: list[int] = []  # bytes of the files of this epoch that were read to their end
        self._documents = 0  # read of the file after those
        self._digest = hashlib.blake2b(digest_size=16)  # of these documents
        self._texts = self._read()

    def batch(self) -> list[str]:
        """The next documents, as many as have about `_BATCH_CHARACTERS` together."""
        texts, size = [], 0
        while size < _BATCH_CHARACTERS:
            texts.append(next(self._texts))
            size += len(texts[-1])
        return texts

    def state_dict(self) -> dict[str, Any]:
        """Return how far the source was read, as plain values."""
        return {
            "epoch": self.epoch,
            "files": [str(file) for file in self.source.files],
            "finished": list(self._finished),
            "documents": self._documents,
            "digest": self._digest.hexdigest(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume, reading the begun file again; raises CheckpointError where what was read has changed."""
        known = [str(file) for file in self.source.files]
        if known != state["files"]:
            other = sorted(set(known) ^ set(state["files"]))
            raise CheckpointError(
                f"the source {self.source.name!r} had {len(state['files'])} files when the run stopped and has "
                f"{len(known)} now ({', '.join(other[:3]) or 'in another order'}). "
                "Give it the same files again, or start a new run from the model"
            )
        self.epoch, self._finished = state["epoch"], list(state["finished"])
        order = self._order()
        for file, size in zip(order, self._finished, strict=False):
            if (file_size(file) or 0) != size:  # 0: a server did not say
                raise _changed(file)
        begun = None
        if state["documents"]:
            file = order[len(self._finished)]
            begun = self._open(file)
            for _ in itertools.islice(begun, state["documents"]):
                pass
            if self._digest.hexdigest() != state["digest"]:
                raise _changed(file)
        self._texts = self._read(begun)

    def _order(self) -> list[SourceFile]:
        """The files in the order of this epoch."""
        random = np.random.Philox(key=np.array([self._seed, self.epoch], dtype=np.uint64))
        order = np.argsort(random.random_raw(len(self.source.files)), kind="stable")
        return [self.source.files[number] for number in order.tolist()]

    def _read(self, begun: Iterator[tuple[str, float]] | None = None) -> Iterator[str]:
        """All training documents from the present position on, which always is just behind the last one given."""
        given = begun is not None or bool(self._finished)
        while True:
            for file in self._order()[len(self._finished) :]:
                for text, key in begun or self._open(file):
                    if self.source.in_training(key):
                        given = True
                        yield text
                begun = None
                self._finished.append(file_size(file) or 0)
            if not given:
                raise DataError(
                    f"the source {self.source.name!r} has no document to train on: all are held out. Give more text"
                )
            self.epoch, self._finished, given = self.epoch + 1, [], False

    def _open(self, file: SourceFile) -> Iterator[tuple[str, float]]:
        """All documents of a file with their hashes; the position moves with them."""
        self._documents, self._digest = 0, hashlib.blake2b(digest_size=16)
        for item in read_documents([file], self.source.text_field, self.source.documents):
            key = document_hash(item.text)
            self._documents += 1
            self._digest.update(struct.pack("<d", key))
            yield item.text, key


class RowStream:
    """A row source that is read in order: rows packed as `PackedSequences` does and shuffled through a buffer.

    Neighbouring rows share one token, across epochs too, so every token is a label once an epoch and nothing is
    padded. Row n is drawn from the R rows of the buffer by the n-th random word; the next packed row takes its place.
    """

    rows_per_group = 1
    row_groups = None
    can_fold = False

    def __init__(
        self,
        source: StreamSource,
        tokenizer: Any,
        seq_len: int,
        buffer_rows: int,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self.name = source.name
        self.reader = DocumentReader(source, seed)
        self._tokenizer = tokenizer
        self._say, self._specials = say, set[str]()
        self.seq_len = seq_len
        self._buffer_rows = buffer_rows
        self._seed = source_seed(seed, source.name)
        self._drawn = 0
        self._random_words = (-1, np.empty(0, dtype=np.uint64))
        self._ids = np.empty(0, dtype=np.int32)  # (N,) packed up to `_at`
        self._starts = np.empty(0, dtype=bool)
        self._at = 0
        self._buffer = np.empty((0, seq_len), dtype=np.int32)  # (R, T) once a row was asked for
        self._buffer_starts = np.empty((0, seq_len), dtype=bool)

    def rows(self, places: Ids, row: int = 0) -> Rows:
        """The rows at these places (B,) of the stream; they must be the next ones. See RowSource."""
        assert row == 0 and places[0] == self._drawn, (places, self._drawn)
        found = [self._next_row() for _ in places]
        ids, starts = (np.stack(arrays) for arrays in zip(*found, strict=True))
        return rows_of_text(ids.astype(np.int64), starts, np.ones_like(starts))

    def epoch(self, groups: int) -> int:
        """How often the source was read to its end, as far as it was read."""
        return self.reader.epoch

    def _next_row(self) -> tuple[NDArray[np.int32], Flags]:
        """The next row: its token ids (T,) and where a document starts (T,)."""
        if not len(self._buffer):
            rows = [self._next_packed_row() for _ in range(self._buffer_rows)]
            self._buffer = np.stack([ids for ids, _ in rows])
            self._buffer_starts = np.stack([starts for _, starts in rows])
        place = self._random_word() % self._buffer_rows
        row = self._buffer[place].copy(), self._buffer_starts[place].copy()
        self._buffer[place], self._buffer_starts[place] = self._next_packed_row()
        self._drawn += 1
        return row

    def _next_packed_row(self) -> tuple[NDArray[np.int32], Flags]:
        """The next row of the text, in order."""
        stop = self._at + self.seq_len
        while stop > len(self._ids):
            self._encode_more()
            stop = self._at + self.seq_len
        row = self._ids[self._at : stop], self._starts[self._at : stop]
        self._at = stop - 1
        return row

    def _encode_more(self) -> None:
        """Put the tokens of some more documents behind those that fill no row yet."""
        texts = self.reader.batch()
        if found := count_special_tokens(self._tokenizer, texts).keys() - self._specials:
            self._specials |= found
            self._say(
                f"{self.name}: special tokens that are written out in the text are read as plain text: "
                + ", ".join(sorted(found))
            )
        rows = [row for row in encode_documents(self._tokenizer, texts) if len(row)]
        starts = np.zeros(sum(len(row) for row in rows), dtype=bool)
        starts[np.cumsum([0, *(len(row) for row in rows[:-1])])] = True
        self._ids = np.concatenate([self._ids[self._at :], *rows])
        self._starts = np.concatenate([self._starts[self._at :], starts])
        self._at = 0

    def _random_word(self) -> int:
        """The random word of the next draw: a pure function of seed and number, made a block at a time."""
        block, place = divmod(self._drawn, _DRAWS)
        if self._random_words[0] != block:
            random = np.random.Philox(key=np.array([self._seed, block], dtype=np.uint64))
            self._random_words = block, random.random_raw(_DRAWS)
        return int(self._random_words[1][place])

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the source and the number of rows drawn, as plain values."""
        return {"drawn": self._drawn, "reader": self.reader.state_dict()}

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """The tokens that were read and not handed out."""
        arrays = {
            "ids": self._ids[self._at :],
            "starts": self._starts[self._at :],
            "buffer": self._buffer,
            "buffer_starts": self._buffer_starts,
        }
        return {f"{self.name}.{key}": torch.from_numpy(array.copy()) for key, array in arrays.items()}

    def load_state_dict(self, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on behind the saved position."""
        self._drawn, self._at = state["drawn"], 0
        self._ids, self._starts, self._buffer, self._buffer_starts = (
            tensors[f"{self.name}.{key}"].numpy().copy()
            for key in ("ids", "starts", "buffer", "buffer_starts")
        )
        self.reader.load_state_dict(state["reader"])


def stream_batches(
    sources: Mapping[str, StreamSource],
    mixture: Mixture,
    tokenizer: Any,
    seq_len: int,
    micro_batch: int,
    accumulation: int = 1,
    seed: int = 0,
    shuffle_rows: int = 1024,
    say: Callable[[str], None] = lambda text: None,
) -> RowBatches:
    """The batches of a run on streams; they can only be taken in order.

    Memory holds `shuffle_rows` rows and one encoding batch a source.
    """
    settings = {
        "tokenizer": fingerprint(tokenizer),
        "mixture": mixture.record(),
        "seq_len": seq_len,
        "global_batch": micro_batch * accumulation,
        "seed": seed,
        "shuffle_rows": shuffle_rows,
        "held_out": [[source.threshold, len(source.held_out)] for source in sources.values()],
    }
    return RowBatches(
        {
            name: RowStream(source, tokenizer, seq_len, shuffle_rows, seed, say)
            for name, source in sources.items()
        },
        mixture,
        micro_batch,
        accumulation,
        settings=settings,
        pad_id=0,  # a stream has no padding
    )


def plan_streams(
    groups: Mapping[str, list[str]],
    *,
    text_field: str,
    documents: DocumentsRule | None,
    validation_fraction: float,
    validation_sources: list[str],
) -> dict[str, StreamSource]:
    """The sources to stream, their text unread; separate validation files are read once, for their hashes."""
    streams = {}
    validation_files = find_files(validation_sources) if validation_sources else []
    for name, paths in groups.items():
        files = find_files(paths)
        rule = choose_documents_rule(files, text_field, documents, bool(validation_files)).rule
        held = read_documents(validation_files, text_field, rule) if validation_files else iter(())
        streams[name] = StreamSource(
            name=name,
            files=files,
            text_field=text_field,
            documents=rule,
            threshold=0.0 if validation_files else validation_fraction,
            validation_files=validation_files,
            held_out=frozenset(document_hash(item.text) for item in held),
        )
    return streams


def _changed(file: SourceFile) -> CheckpointError:
    return CheckpointError(
        f"{file}: this file has changed since the run stopped, in a part that was read before, so the run cannot go "
        "on as if it had never stopped. Put the old file back, or start a new run from the model (--from)"
    )
