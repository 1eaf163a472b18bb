"""The tokens of a tokenizer as grammars see them: what bytes each writes, and which close a text."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from transformers import PreTrainedTokenizerBase

from mm_rec.errors import TokenizerError
from mm_rec.inference.grammar.token_bytes import ForbiddenTexts, GrammarTokenizer, token_bytes
from mm_rec.tokenizers.conversion import ESCAPES
from mm_rec.tokenizers.loading import special_token_strings, vocabulary_size

DIGITS = b"0123456789"
MAX_DIGITS = 40  # digits in a row; Python reads no integer of more than 4,300


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
        from llguidance import LLTokenizer, TokenizerWrapper

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
        self.quote = self.single_byte_tokens.get(b'"', -1)
        self.llguidance = LLTokenizer(TokenizerWrapper(GrammarTokenizer(tokenizer, self.bytes)))

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """Return the bytes that tokens write."""
        return b"".join(map(self.bytes.__getitem__, tokens))

    def encode_bytes(self, text: bytes) -> list[int]:
        """Return tokens that write these bytes, which may begin and end within a character."""
        try:
            ids: list[int] = self.llguidance.greedy_tokenize(
                text.decode()
            )  # far faster than the tokenizer's own way
        except UnicodeDecodeError:
            ids = self.llguidance.tokenize_bytes(text)
        return ids
