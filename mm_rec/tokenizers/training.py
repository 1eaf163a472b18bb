"""Training a tokenizer: a spread sample of the text, SentencePiece BPE, exact conversion, proof, folder."""

from __future__ import annotations

import heapq
import io
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pydantic
import sentencepiece
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from mm_rec.config import Section
from mm_rec.errors import TokenizerError, VocabularyTooLarge
from mm_rec.runs import files
from mm_rec.tokenizers.chat_template import prepare_for_chat
from mm_rec.tokenizers.conversion import ESCAPES, ConversionCheck, to_tokenizer_json, verify_conversion
from mm_rec.tokenizers.loading import fingerprint, load_tokenizer
from mm_rec.tokenizers.special_tokens import (
    ENDOFTEXT,
    PAD,
    SEPARATORS,
    SPECIAL_TOKENS,
    UNKNOWN,
)

MODEL_FILE = "tokenizer.model"
REPORT_FILE = "training_report.json"

# (stage, bytes done, bytes in all or None where it is not known); the stages are STAGES, in this order.
StageProgress = Callable[[str, int, int | None], None]
STAGES = ("reading", "training", "proving")

_UNIT_CHARACTERS = 8192
_LARGEST_SENTENCE = 1 << 20
_LARGEST_VOCABULARY = 1_000_000

# Lines are cut at these for training alone. SentencePiece drops a line that holds U+2585, its own mark for
# the unknown, without a word; a tab is a piece of its own anyway; and the escapes should not become pieces.
_CUTS = re.compile("[\t\u2585" + "".join(plain for plain, _ in ESCAPES) + "]+")


class TokenizerConfig(Section):
    """Settings of a tokenizer's training.

    `sample_bytes` is how much text the vocabulary is learnt from and proven on: where there is more, lines
    are drawn from all of it by `seed`, each with the same chance. The memory needed is about five times that.
    """

    vocab_size: int = pydantic.Field(default=32_000, ge=1, le=_LARGEST_VOCABULARY)
    character_coverage: float = pydantic.Field(default=0.9995, ge=0.98, le=1.0)
    byte_fallback: bool = True
    sample_bytes: int = pydantic.Field(default=100_000_000, ge=1)
    threads: int | None = pydantic.Field(default=None, ge=1, le=1024)
    seed: int = pydantic.Field(default=42, ge=0)


@dataclass(frozen=True, slots=True)
class LineSample:
    """Lines drawn from the documents, in their order, and how much text there was (bytes of UTF-8)."""

    lines: list[bytes]
    documents: int
    bytes_read: int
    bytes_used: int


@dataclass(frozen=True, slots=True)
class TokenizerTrainingReport:
    """Result of a training: sizes in bytes of UTF-8, time in seconds, and the check of the conversion."""

    vocab_size: int
    fingerprint: str
    documents: int
    bytes_read: int
    bytes_used: int
    proof: ConversionCheck
    seconds: float


def train_tokenizer(
    documents: Callable[[], Iterable[str]],
    config: TokenizerConfig,
    out: Path,
    progress: StageProgress | None = None,
) -> TokenizerTrainingReport:
    """Train a tokenizer on the documents and write it to the folder `out`, whole or not at all.

    `documents` is called once and read once. Raises TokenizerError where the text is empty, the vocabulary
    does not suit it, or `out` holds something else; MismatchError where the conversion is not exact.
    """
    started = time.monotonic()
    require_replaceable(out)
    notify = progress or _ignore
    sample = draw_sample(documents(), config, lambda done: notify("reading", done, None))
    notify("training", 0, sample.bytes_used)
    model = _train_sentencepiece(sample, config)
    notify("training", sample.bytes_used, sample.bytes_used)
    with files.atomic_path(out) as folder:
        folder.mkdir()
        (folder / MODEL_FILE).write_bytes(model)
        _to_transformers(to_tokenizer_json(folder / MODEL_FILE)).save_pretrained(folder)
        report = _verify_folder(folder, sample, started, notify)
        files.write_json(
            folder / REPORT_FILE,
            {"config": config.model_dump(), "sentencepiece": sentencepiece.__version__, **asdict(report)},
        )
    return report


def require_replaceable(out: Path) -> None:
    """Raise TokenizerError unless `out` is free, empty, or an earlier tokenizer, which would be replaced."""
    if not out.exists() or (out.is_dir() and (not any(out.iterdir()) or (out / REPORT_FILE).is_file())):
        return
    raise TokenizerError(
        f"{out}: this exists and was not written by `mmrec tokenizer train`, so it is not replaced. "
        "Choose another folder"
    )


def draw_sample(
    documents: Iterable[str], config: TokenizerConfig, advance: Callable[[int], None]
) -> LineSample:
    """Draw lines up to `sample_bytes` from all documents, each with the same chance, in one pass.

    Every line gets a random key, and the lines with the smallest keys are kept: the result depends on the
    documents, their order and the seed alone. A line over 8,192 characters counts as several, cut at spaces.
    `advance` is called with the bytes read so far.
    """
    random_key = random.Random(config.seed).random
    kept: list[tuple[float, int, bytes]] = []
    read = used = count = index = 0
    threshold = 1.0
    for count, document in enumerate(documents, start=1):
        read += len(_utf8(document, count))
        advance(read)
        for line in _lines(document):
            index += 1
            key = random_key()
            if key >= threshold:
                continue
            encoded = line.encode()
            heapq.heappush(kept, (-key, index, encoded))
            used += len(encoded)
            while used > config.sample_bytes and len(kept) > 1:
                dropped, _, line_dropped = heapq.heappop(kept)
                threshold = -dropped
                used -= len(line_dropped)
    kept.sort(key=lambda item: item[1])
    return LineSample(lines=[line for _, _, line in kept], documents=count, bytes_read=read, bytes_used=used)


def _ignore(_stage: str, _done: int, _total: int | None) -> None:
    """Ignore progress."""


def _utf8(document: str, number: int) -> bytes:
    try:
        return document.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"document {number} holds half of a surrogate pair at character {error.start}, which is no text. "
            "Repair or remove that document"
        ) from error


def _lines(document: str) -> Iterator[str]:
    """Yield the lines of a document without newlines; too long ones are cut before a space where they have one."""
    for line in document.split("\n"):
        start = 0
        while len(line) - start > _UNIT_CHARACTERS:
            space = line.rfind(" ", start + 1, start + _UNIT_CHARACTERS)
            end = space if space > 0 else start + _UNIT_CHARACTERS
            yield line[start:end]
            start = end
        if start < len(line):
            yield line[start:]


def _train_sentencepiece(sample: LineSample, config: TokenizerConfig) -> bytes:
    """Train a SentencePiece model and return its bytes."""
    pieces = (piece for line in sample.lines for piece in _CUTS.split(line.decode()) if piece)
    if not any(piece.strip() for line in sample.lines for piece in _CUTS.split(line.decode())):
        raise TokenizerError("there is no text to train a tokenizer on. Give files that hold text")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=pieces,
            model_writer=model,
            model_type="bpe",
            vocab_size=config.vocab_size,
            character_coverage=config.character_coverage,
            byte_fallback=config.byte_fallback,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            max_sentence_length=_LARGEST_SENTENCE,
            unk_id=0,
            unk_piece=UNKNOWN,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            user_defined_symbols=[*SPECIAL_TOKENS, *SEPARATORS],
            num_threads=config.threads or os.cpu_count() or 1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _vocabulary_error(str(error), config) from error
    return model.getvalue()


def _vocabulary_error(message: str, config: TokenizerConfig) -> TokenizerError:
    """Translate SentencePiece's refusal, with the number that would have worked."""
    if largest := re.search(r"set it to a value <= (\d+)", message):
        return VocabularyTooLarge(config.vocab_size, int(largest[1]))
    if smallest := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return TokenizerError(
            f"a vocabulary of {config.vocab_size:,} cannot hold the special tokens, bytes and characters "
            f"of this text: it needs {int(smallest[1]):,}. Use --vocab-size {smallest[1]} or more, or a "
            "lower --character-coverage"
        )
    return TokenizerError(f"SentencePiece could not train a tokenizer: {message}")


def _to_transformers(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Wrap the tokenizer for transformers: special tokens by role, and the chat template."""
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=ENDOFTEXT,
        eos_token=ENDOFTEXT,
        pad_token=PAD,
        add_bos_token=True,
        clean_up_tokenization_spaces=False,
    )
    prepare_for_chat(result)
    return result


def _verify_folder(
    folder: Path, sample: LineSample, started: float, notify: StageProgress
) -> TokenizerTrainingReport:
    """Verify the tokenizer as loaded from the folder, not as it is in memory."""
    tokenizer: Any = load_tokenizer(folder)
    proven = 0

    def advance(size: int) -> None:
        nonlocal proven
        proven += size
        notify("proving", proven, sample.bytes_used)

    proof = verify_conversion(
        folder / MODEL_FILE, tokenizer.backend_tokenizer, (line.decode() for line in sample.lines), advance
    )
    return TokenizerTrainingReport(
        vocab_size=len(tokenizer),
        fingerprint=fingerprint(tokenizer),
        documents=sample.documents,
        bytes_read=sample.bytes_read,
        bytes_used=sample.bytes_used,
        proof=proof,
        seconds=round(time.monotonic() - started, 2),
    )
