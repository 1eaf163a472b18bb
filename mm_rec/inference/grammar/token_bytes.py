"""The bytes of each token, and forbidden texts: what grammars need to know of a tokenizer."""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from mm_rec.tokenizers.conversion import SPACE, unescape
from mm_rec.tokenizers.loading import byte_fallback_ids, encoder, token_byte_lengths

TokenMask = NDArray[np.bool_]


class ForbiddenTexts:
    """Texts that must not come about: special tokens written out, and what is decoded to other text than its bytes."""

    def __init__(self, texts: Sequence[bytes], tokens: Sequence[bytes]) -> None:
        self.longest = max(map(len, texts))
        self.search = re.compile(b"|".join(map(re.escape, texts))).search
        self._whole = np.array([i for i, token in enumerate(tokens) if self.search(token)], dtype=np.int64)
        ranked = sorted((token, index) for index, token in enumerate(tokens) if token)
        self._after: dict[bytes, list[int]] = {}  # what was written → the tokens that would complete a text
        for text in texts:
            for cut in range(1, len(text)):
                rest = text[cut:]
                first = bisect.bisect_left(ranked, (rest, -1))
                last = bisect.bisect_left(ranked, (rest + b"\xff" * 4, -1), lo=first)
                self._after.setdefault(text[:cut], []).extend(index for _, index in ranked[first:last])

    def clear(self, mask: TokenMask, written: bytes) -> None:
        """Take the tokens out of a mask (V,) that would complete such a text after these bytes."""
        mask[self._whole] = False
        for length in range(1, min(len(written), self.longest) + 1):
            if completing := self._after.get(written[-length:]):
                mask[completing] = False


class GrammarTokenizer:
    """A tokenizer as llguidance asks for it."""

    bos_token_id = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[bytes]) -> None:
        self._backend, self._bytes = encoder(tokenizer), tokens
        self._single_byte_tokens = {token: index for index, token in enumerate(tokens) if len(token) == 1}
        self.tokens, self.eos_token_id = list(tokens), tokenizer.eos_token_id
        special = [index for index, token in tokenizer.added_tokens_decoder.items() if token.special]
        self.special_token_ids = sorted({self.eos_token_id, *special})
        for index in self.special_token_ids:
            self.tokens[index] = f"<|{index}|>".encode()

    def __call__(self, text: str) -> list[int]:
        """The ids of a text that must come, byte by byte where the usual ones do not stand for just that."""
        ids = self._backend.encode(text, add_special_tokens=False).ids
        if b"".join(self._bytes[index] for index in ids) == text.encode():
            return ids
        single = (bytes([byte]) for byte in text.encode())
        return [self._single_byte_tokens[byte] for byte in single if byte in self._single_byte_tokens]


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """The bytes that each id stands for in the middle of a text; none for special, unknown and unused ones.

    Raises TokenizerError for a tokenizer whose pieces are neither SentencePiece's nor byte-level.
    """
    backend = encoder(tokenizer)
    lengths = token_byte_lengths(tokenizer)
    byte_level = "ByteLevel" in json.dumps(json.loads(backend.to_str())["decoder"])
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    single = set(byte_fallback_ids(tokenizer).tolist())
    tokens = [b""] * len(lengths)
    for piece, index in backend.get_vocab(with_added_tokens=True).items():
        if lengths[index] == 0:
            continue
        if byte_level:
            known = all(letter in letters for letter in piece)
            tokens[index] = bytes(letters[letter] for letter in piece) if known else piece.encode()
        elif index in single:
            tokens[index] = bytes([int(piece[3:5], 16)])
        else:
            tokens[index] = unescape(piece.replace(SPACE, " ")).encode()
    return tokens
