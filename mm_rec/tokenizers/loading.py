"""Loading tokenizers, encoding documents, and properties of vocabularies and special tokens."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import compress, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mm_rec.errors import TokenizerError
from mm_rec.tokenizers.conversion import SPACE, is_converted, unescape
from mm_rec.tokenizers.special_tokens import UNKNOWN

_LOCK = threading.Lock()
_TEXT_ENCODERS: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, Tokenizer]] = (
    weakref.WeakKeyDictionary()
)
_GROUP_CHARACTERS = 4_000_000
# The post-processor that transformers writes for a tokenizer that puts nothing before or after a text.
_NOTHING_ADDED = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


def load_tokenizer(path: Path | str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a tokenizer folder, a model folder or a run from its `tokenizer.json`.

    Nothing is downloaded and no code of the folder is run. One of ours that was written before our tokenizers put bos
    before a text themselves does so from here on: its model was trained with it. Raises TokenizerError where none can
    be loaded.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise TokenizerError(
            f"{folder}: there is no such folder. Name a folder that holds a tokenizer.json: "
            "one that `mmrec tokenizer train` wrote, or a model folder"
        )
    places = [folder, folder / "final", folder / "best", folder / "tokenizer"]
    places += sorted((folder / "checkpoints").glob("step-*/model"), reverse=True)
    found = next((place for place in places if (place / "tokenizer.json").is_file()), None)
    if found is None:
        raise TokenizerError(
            f"{folder}: there is no tokenizer.json in this folder. Train one with `mmrec tokenizer train "
            "FILES --out DIR`, or save your model's: AutoTokenizer.from_pretrained(…).save_pretrained(DIR)"
        )
    try:
        # Not AutoTokenizer: that asks for leave to run code where a model folder carries a modelling file.
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
            str(found), local_files_only=True
        )
    except Exception as error:  # `tokenizers` raises bare Exception for a damaged file
        raise TokenizerError(
            f"{folder}: the tokenizer cannot be loaded ({type(error).__name__}: {error}). "
            "One of its files is damaged; copy the folder again or train the tokenizer anew"
        ) from error
    if is_converted(tokenizer.backend_tokenizer):
        tokenizer.add_bos_token = True  # type: ignore[misc]  # its setter does not stand beside its getter
    return tokenizer


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 (hex) of everything that decides ids: vocabulary, merges, normalisation and special tokens.

    Padding, truncation and the chat template do not count; saving and loading do not change it.
    """
    backend = _backend(tokenizer)
    content = json.loads(backend.to_str())
    if is_converted(backend):
        # Ours always put bos before documents, and once did not say so here: shards and runs of then have this mark.
        content["post_processor"] = _NOTHING_ADDED
    for key in ("version", "padding", "truncation"):
        content.pop(key, None)
    content["special_ids"] = {
        name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")
    }
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that the tokenizer itself puts before a text, which begin every document and prompt.

    [bos] or nothing: a foreign tokenizer may have a bos for other uses, and add none.
    """
    encoding = encoder(tokenizer).encode("a")
    return list(compress(encoding.ids, takewhile(bool, encoding.special_tokens_mask)))


def encode_document(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode one document: `bos_ids`, the text, and eos if the tokenizer has one."""
    ids: list[int] = encode_documents(tokenizer, [text])[0].tolist()
    return ids


def encode_documents(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], parse_specials: bool = False
) -> list[npt.NDArray[np.int32]]:
    """Encode a batch as `encode_document` does, on all threads; one array (tokens,) int32 a document.

    A special token that is written out in a text is text, unless they are to be parsed: in what a chat layout rendered,
    which may have its beginning already.
    """
    before = bos_ids(tokenizer)
    after = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [
        np.array([*_begun(encoding.ids, before), *after], dtype=np.int32)
        for group in _groups(texts)
        for encoding in (
            encoder(tokenizer) if parse_specials else text_encoder(tokenizer, group)
        ).encode_batch_fast(group, add_special_tokens=False)
    ]


def _begun(ids: list[int], before: list[int]) -> list[int]:
    """Return the ids with `before` in front, where they do not begin so already."""
    return ids if ids[: len(before)] == before else [*before, *ids]


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the highest id plus one, added tokens included: the rows that an embedding needs."""
    return max(_backend(tokenizer).get_vocab(with_added_tokens=True).values(), default=-1) + 1


def require_vocab_fits(tokenizer: PreTrainedTokenizerBase, vocab_size: int, special: bool = True) -> None:
    """Raise TokenizerError where the tokenizer has ids that a model of `vocab_size` rows has not.

    Without `special` those of special tokens do not count: Gemma 3 has one for pictures that its text models lack.
    """
    added = tokenizer.added_tokens_decoder.items()
    left_out = set() if special else {token for token, one in added if one.special}
    ids = _backend(tokenizer).get_vocab(with_added_tokens=True).values()
    needed = max((token for token in ids if token not in left_out), default=-1) + 1
    if needed > vocab_size:
        raise TokenizerError(
            f"the tokenizer has ids up to {needed - 1:,} and the model has a vocabulary of {vocab_size:,}. "
            "Use the tokenizer that the model was trained with, or make the model with "
            f"vocab_size={needed} or more"
        )


def token_byte_lengths(tokenizer: PreTrainedTokenizerBase) -> npt.NDArray[np.int64]:
    """Return the UTF-8 bytes that each id stands for, (vocabulary,) int64; specials and unused ids stand for 0.

    Raises TokenizerError for a tokenizer whose pieces are neither SentencePiece's nor byte-level.
    """
    backend = _backend(tokenizer)
    kinds = _decoder_kinds(backend)
    added = backend.get_added_tokens_decoder()
    lengths = np.zeros(vocabulary_size(tokenizer), dtype=np.int64)
    for piece, index in backend.get_vocab(with_added_tokens=True).items():
        if index in added:
            lengths[index] = 0 if added[index].special else len(added[index].content.encode())
        elif piece not in (UNKNOWN, tokenizer.unk_token):
            lengths[index] = _piece_bytes(piece, kinds)
    return lengths


def byte_fallback_ids(tokenizer: PreTrainedTokenizerBase) -> npt.NDArray[np.int64]:
    """Return the ids of the pieces for single bytes of characters outside the vocabulary, (0 or 256,) int64."""
    backend = _backend(tokenizer)
    if "ByteFallback" not in _decoder_kinds(backend):
        return np.zeros(0, dtype=np.int64)
    vocabulary = backend.get_vocab(with_added_tokens=False)
    return np.array(
        sorted(index for piece, index in vocabulary.items() if _BYTE_PIECE.fullmatch(piece)), dtype=np.int64
    )


def encoder(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return the tokenizer's backend, set to parse special tokens in the text, as in rendered chats."""
    backend = _backend(tokenizer)
    # Left behind by an earlier `tokenizer(…, truncation=True)`, or stored in a foreign tokenizer.json.
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    if backend.encode_special_tokens:  # left behind by `tokenizer(…, split_special_tokens=True)`
        backend.encode_special_tokens = False
    return backend


def text_encoder(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Tokenizer:
    """Return the backend to encode these texts with special tokens in them as ordinary text."""
    pattern = special_token_pattern(tokenizer)
    if not any(pattern.search(text) for text in texts):
        return encoder(tokenizer)
    with _LOCK:
        backend, known = encoder(tokenizer), _TEXT_ENCODERS.get(tokenizer)
        if known is None or known[0] != len(backend.get_added_tokens_decoder()):
            # A copy, because the switch is the backend's own, and others encode chats with it at the same time.
            copy = Tokenizer.from_str(backend.to_str())
            copy.encode_special_tokens = True
            known = _TEXT_ENCODERS[tokenizer] = (len(backend.get_added_tokens_decoder()), copy)
        return known[1]


def special_token_strings(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the special tokens as they are written out, without that for unknown words.

    Not `all_special_tokens`: that has those alone which have a name.
    """
    names = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(names - {str(tokenizer.unk_token)}, reverse=True)


def special_token_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Return a pattern for special tokens written out in a text."""
    return re.compile("|".join(map(re.escape, special_token_strings(tokenizer))) or r"(?!)")


def count_special_tokens(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Counter[str]:
    """Count each special token that is written out in texts."""
    pattern = special_token_pattern(tokenizer)
    return Counter(found for text in texts for found in pattern.findall(text))


def describe_special_tokens(counts: Mapping[str, int], parsed: bool = False) -> list[str]:
    """Describe special tokens that are written out in a text: a line, or none where there are none."""
    if not counts:
        return []
    named = ", ".join(f"{token} {count:,} times" for token, count in sorted(counts.items()))
    read = "special tokens" if parsed else "plain text"
    return [f"special tokens that are written out in the text are read as {read}: {named}"]


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield texts in groups of a bounded size: an Encoding takes about 20 times the memory of its text."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and size + len(text) > _GROUP_CHARACTERS:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise TokenizerError(
            f"a {type(tokenizer).__name__} has no tokenizer.json behind it. "
            "Load the tokenizer with AutoTokenizer from a folder that has a tokenizer.json"
        )
    return backend


def _decoder_kinds(backend: Tokenizer) -> set[str]:
    """Return the names of the decoder's steps."""
    decoder = json.loads(backend.to_str())["decoder"] or {}
    return {step["type"] for step in decoder.get("decoders", [decoder]) if step}


def _piece_bytes(piece: str, decoder_kinds: set[str]) -> int:
    """Return the UTF-8 bytes of one ordinary piece."""
    if "ByteLevel" in decoder_kinds:
        return len(piece)
    if not decoder_kinds & {"ByteFallback", "Metaspace", "Replace"}:
        raise TokenizerError(
            "the bytes of a piece are not known for a tokenizer that decodes by "
            f"{', '.join(sorted(decoder_kinds)) or 'nothing'}. "
            "SentencePiece and byte-level tokenizers are supported"
        )
    if "ByteFallback" in decoder_kinds and _BYTE_PIECE.fullmatch(piece):
        return 1
    return len(unescape(piece.replace(SPACE, " ")).encode())
