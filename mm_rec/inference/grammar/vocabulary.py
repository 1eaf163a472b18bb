"""The tokens of a tokenizer as grammars see them: what bytes each writes, and which close a text."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable

import numpy as np
from transformers import PreTrainedTokenizerBase

from mm_rec.errors import TokenizerError
from mm_rec.inference.grammar.token_bytes import ForbiddenTexts, token_bytes
from mm_rec.tokenizers.conversion import ESCAPES
from mm_rec.tokenizers.loading import special_token_strings, vocabulary_size

DIGITS = b"0123456789"
MAX_DIGITS = 40  # digits in a row; Python reads no integer of more than 4,300
# Tried first where nothing closes a text: a short value, then what a pattern may ask for.
_FALLBACK_BYTES = b"n" + DIGITS + b"-,.:;@/_ +()#=*!?%&$~^'|<>`" + string.ascii_letters.encode() + b"{[}]\\"


class GrammarVocabulary:
    """The vocabulary that constraints choose from.

    `model_vocab_size`: rows of the model, where it has more than the tokenizer has ids. `stop_ids` end a text as eos
    does. Raises TokenizerError for a tokenizer whose pieces are neither SentencePiece's nor byte-level.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model_vocab_size: int | None = None,
        stop_ids: Iterable[int] = (),
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise TokenizerError("this tokenizer has no eos, so no text could end. Give it a chat layout")
        self.vocab_size = max(model_vocab_size or 0, vocabulary_size(tokenizer))
        self.model_vocab_size = (
            model_vocab_size or self.vocab_size
        )  # a tokenizer may have special tokens past them
        self.eos: int = tokenizer.eos_token_id
        self.stop_ids = sorted(stop for stop in {self.eos, *stop_ids} if stop < self.model_vocab_size)
        self._tokenizer = tokenizer
        self.bytes = token_bytes(tokenizer)
        self.bytes += [b""] * (self.vocab_size - len(self.bytes))
        self.forbidden = ForbiddenTexts(
            [text.encode() for text in {ESCAPES[0][0], *special_token_strings(tokenizer)}], self.bytes
        )
        self.tail = max(self.forbidden.longest, MAX_DIGITS)  # bytes that decide what may follow
        self.digits = np.array([len(token) - len(token.lstrip(DIGITS)) for token in self.bytes])
        self.single_byte_tokens = {token: index for index, token in enumerate(self.bytes) if len(token) == 1}
        self.fallback_tokens = [
            self.single_byte_tokens[bytes([byte])]
            for byte in _FALLBACK_BYTES
            if bytes([byte]) in self.single_byte_tokens
        ]
        self.closing_tokens = {sign: self.single_byte_tokens.get(sign.encode(), -1) for sign in '"}],'}

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """Return the bytes that tokens write."""
        return b"".join(map(self.bytes.__getitem__, tokens))

    def literal_tokens(self, literals: Iterable[str]) -> list[list[int]]:
        """Literals of patterns in tokens of one byte, and with a quote after them, whole or what may lack of them."""
        texts = (json.dumps(text, ensure_ascii=False)[1:].encode() for text in literals)
        whole = [[self.single_byte_tokens.get(bytes([byte]), -1) for byte in text] for text in texts]
        whole = [tokens for tokens in whole if -1 not in tokens]
        ends = [tokens[start:] for tokens in whole for start in range(len(tokens) - 1)]
        return ends + [tokens[:-1] for tokens in whole]

    def token_text(self, token: int) -> str:
        """A token as text, a special one's name; bytes that are no text alone as signs for such."""
        special = self._tokenizer.added_tokens_decoder.get(token)
        return self.bytes[token].decode(errors="replace") if special is None else str(special)
