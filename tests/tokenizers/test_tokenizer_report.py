from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerBase

from mm_rec.errors import TokenizerError
from mm_rec.tokenizers.loading import fingerprint
from mm_rec.tokenizers.tokenizer_report import measure_tokenizer

Corpus = Callable[[], list[str]]


def test_figures_of_a_text_counted_by_hand(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> None:
    figures = measure_tokenizer(tokenizer, {"tr": ["şarkı ☂", "şarkı\n"], "all": iter(corpus())})
    row = figures["languages"]["tr"]
    tokens = [
        *tokenizer.tokenize("şarkı"),
        "▁",
        "<0xE2>",
        "<0x98>",
        "<0x82>",
        *tokenizer.tokenize("şarkı"),
        "\n",
    ]
    assert (row["documents"], row["words"], row["bytes"], row["tokens"]) == (2, 3, 19, len(tokens))
    assert row["fertility"] == len(tokens) / 3
    assert row["bytes_per_token"] == 19 / len(tokens)
    assert row["byte_fallback_share"] == 3 / len(tokens)
    longest = row["longest_pieces"][0]
    assert longest["bytes"] == max(len(piece.encode()) for piece in tokenizer.tokenize("şarkı"))
    assert longest["count"] == 2
    assert [item["count"] for item in row["rarest_pieces"]] == sorted(
        item["count"] for item in row["rarest_pieces"]
    )
    assert not any(item["piece"].startswith("<0x") for item in row["rarest_pieces"])


def test_figures_of_the_whole(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> None:
    figures = measure_tokenizer(tokenizer, {"all": corpus()})
    assert figures["fingerprint"] == fingerprint(tokenizer)
    assert figures["vocab_size"] == 480
    assert figures["ordinary_pieces"] == 480 - 10 - 256
    used = figures["languages"]["all"]["used_pieces"]
    assert figures["unused_pieces"] == figures["ordinary_pieces"] - used
    assert json.loads(json.dumps(figures)) == figures


def test_special_tokens_in_the_text_are_not_lost_from_the_count(tokenizer: PreTrainedTokenizerBase) -> None:
    row = measure_tokenizer(tokenizer, {"x": ["a<|endoftext|>a"]})["languages"]["x"]
    assert row["tokens"] > 3  # it is read as text: many pieces
    assert row["bytes"] == len("a<|endoftext|>a")


@pytest.mark.parametrize("texts", [[], [""]])
def test_a_language_without_text_is_named(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
    with pytest.raises(TokenizerError, match="deneme"):
        measure_tokenizer(tokenizer, {"deneme": texts})
