"""SentencePiece to `tokenizer.json`, exactly, and the proof that it is exact.

SentencePiece writes a space as U+2581 ("▁"), so it cannot tell a space from a "▁" that stands in the text,
and decodes both to a space. The converted tokenizer keeps them apart: it escapes a "▁" of the text before the
spaces are replaced and unescapes it after decoding. Hence for every text
`tokenizer.encode(text) == sentencepiece.encode(escape(text))` and `decode(encode(text)) == text`;
`escape` changes nothing in a text without "▁" and U+FDD0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from mm_rec.errors import MismatchError, TokenizerError
from mm_rec.tokenizers.special_tokens import SPECIAL_TOKENS

SPACE = "\u2581"

# U+FDD0 to U+FDD2 are noncharacters, reserved for a program's internal use. Each pair is (in the text, in the
# pieces); in this order the escape is one to one, whatever the text holds.
ESCAPES = (("\ufdd0", "\ufdd0\ufdd2"), (SPACE, "\ufdd0\ufdd1"))

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_BATCH_LINES = 4096


@dataclass(frozen=True, slots=True)
class ConversionCheck:
    """Result of `verify_conversion`: lines and bytes compared, and the lines with unknown characters."""

    lines: int
    bytes: int
    lines_with_unknown: int


def escape(text: str) -> str:
    """Escape the "▁" of a text so that SentencePiece does not take it for a space."""
    for plain, escaped in ESCAPES:
        text = text.replace(plain, escaped)
    return text


def unescape(text: str) -> str:
    """Undo `escape`."""
    for plain, escaped in reversed(ESCAPES):
        text = text.replace(escaped, plain)
    return text


def is_converted(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer is ours, converted from SentencePiece: no other escapes the "▁" of a text."""
    return tokenizer.normalizer is not None and tokenizer.normalizer.normalize_str(SPACE) == escape(SPACE)


def to_tokenizer_json(model: Path) -> Tokenizer:
    """Convert a SentencePiece BPE model to a tokenizer that gives the same ids.

    Raises TokenizerError for a damaged file and for settings that have no exact counterpart: a model that is
    not BPE, a Unicode normalisation, a dummy prefix, the removal of spaces.
    """
    proto = _read_model(model)
    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    byte_fallback = bool(proto.trainer_spec.byte_fallback)
    unknown = next(piece.piece for piece in proto.pieces if piece.type == _UNKNOWN)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(proto, vocabulary),
            unk_token=None if byte_fallback else unknown,
            fuse_unk=True,
            byte_fallback=byte_fallback,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [
            *(normalizers.Replace(plain, escaped) for plain, escaped in ESCAPES),
            normalizers.Replace(" ", SPACE),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *(decoders.Replace(escaped, plain) for plain, escaped in reversed(ESCAPES)),
        ]
    )
    added = [piece for piece in proto.pieces if piece.type in (_CONTROL, _USER_DEFINED)]
    special = [piece.piece for piece in added if piece.type == _CONTROL or piece.piece in SPECIAL_TOKENS]
    plain_text = [piece.piece for piece in added if piece.piece not in special]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in plain_text])
    return tokenizer


def verify_conversion(
    model: Path, tokenizer: Tokenizer, lines: Iterable[str], advance: Callable[[int], None] | None = None
) -> ConversionCheck:
    """Compare the converted tokenizer with SentencePiece on every line, and decode every line back.

    A line with an unknown character (only without byte fallback) cannot be decoded exactly and is counted
    instead. `advance` is called with the bytes of each batch. Raises MismatchError with the first bad line.
    """
    reference = SentencePieceProcessor(model_file=str(model))
    unknown = reference.unk_id()
    compared = size = with_unknown = differing = 0
    example: str | None = None
    for batch in _batches(lines):
        expected: list[list[int]] = reference.encode([escape(line) for line in batch])
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
        decoded = tokenizer.decode_batch(ids, skip_special_tokens=False)
        for line, right, ours, text in zip(batch, expected, ids, decoded, strict=True):
            lost = unknown in ours
            with_unknown += lost
            if ours != right or (text != line and not lost):
                differing += 1
                example = line if example is None else example
        batch_bytes = sum(len(line.encode()) for line in batch)
        compared, size = compared + len(batch), size + batch_bytes
        if advance is not None:
            advance(batch_bytes)
    if example is not None:
        raise MismatchError(
            f"{differing:,} of {compared:,} lines are not the same after the conversion to tokenizer.json; "
            f"the first is {example[:200]!r}. No tokenizer was written. Please report this line: "
            "the conversion must be exact for every text"
        )
    return ConversionCheck(lines=compared, bytes=size, lines_with_unknown=with_unknown)


def _read_model(path: Path) -> Any:
    """Read the protocol buffer of a model that can be converted exactly."""
    if not path.is_file():
        raise TokenizerError(f"{path}: there is no such file. Name a SentencePiece model (tokenizer.model)")
    try:
        SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise TokenizerError(
            f"{path}: this is not a SentencePiece model, or it is damaged ({error}). Give a tokenizer.model"
        ) from error
    schema: Any = sentencepiece_model_pb2
    proto = schema.ModelProto()
    proto.ParseFromString(path.read_bytes())
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    problems = {
        "it is not BPE": trainer.model_type != trainer.BPE,
        f"it normalises text by {normalizer.name!r}": bool(normalizer.precompiled_charsmap),
        "it adds a dummy prefix": normalizer.add_dummy_prefix,
        "it removes extra spaces": normalizer.remove_extra_whitespaces,
        "it writes spaces as suffixes": trainer.treat_whitespace_as_suffix,
    }
    found = [problem for problem, present in problems.items() if present]
    if found:
        raise TokenizerError(
            f"{path}: this model has no exact tokenizer.json: {', '.join(found)}. "
            "Train one with `mmrec tokenizer train`, or use the tokenizer.json that came with the model"
        )
    return proto


def _merges(proto: Any, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Return every pair of pieces that merges to a piece, best score first.

    SentencePiece joins any two neighbours whose text is a piece, so all splits of a piece count, not only the
    one that was learnt.
    """
    normal = [(piece.piece, piece.score) for piece in proto.pieces if piece.type == _NORMAL]
    parts = {text for text, _ in normal}
    ranked: list[tuple[float, int, str, str]] = []
    for text, score in normal:
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in parts and right in parts:
                ranked.append((-score, vocabulary[text], left, right))
    ranked.sort()
    return [(left, right) for _, _, left, right in ranked]


def _batches(lines: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(lines)
    while batch := list(itertools.islice(iterator, _BATCH_LINES)):
        yield batch
