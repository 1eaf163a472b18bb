"""Scores of text against a slow computation by hand: one token at a time, float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mm_rec.data.corpus import Corpus, write_corpus
from mm_rec.data.row_sources import PackedSequences
from mm_rec.errors import ConfigError, DataError
from mm_rec.evaluation.perplexity import TextScores, evaluate_corpus, evaluate_text
from mm_rec.tokenizers.loading import encode_document

DOCUMENTS = (
    "Once there was a girl called Ayşe. She lived by the river and sang old songs. " * 3,
    "Küçük çocuk ırmağın kıyısında oturdu. 👍",
    "a",
    "<|user|>\nAyşe kim?\n<|endoftext|>\n<|assistant|>\nBir kız.\n<|endoftext|>\n",
)


@torch.no_grad()
def by_hand(
    model: PreTrainedModel,
    windows: Sequence[Sequence[int]],
    closing: Sequence[bool],
    size: int,
    documents: int,
) -> TextScores:
    """Predict each token of each window but its first from those before it."""
    nats, text_nats, right = [], [], 0
    for window, closes in zip(windows, closing, strict=True):
        for place in range(1, len(window)):
            logits = model(input_ids=torch.tensor([window[:place]]), use_cache=False).logits[0, -1]
            nats.append(-float(logits.log_softmax(-1)[window[place]]))
            right += int(logits.argmax()) == window[place]
            if not (closes and place == len(window) - 1):
                text_nats.append(nats[-1])
    loss = sum(nats) / len(nats)
    return TextScores(
        documents=documents,
        tokens=len(nats),
        text_tokens=len(text_nats),
        bytes=size,
        loss=loss,
        perplexity=math.exp(loss),
        bits_per_byte=sum(text_nats) / math.log(2) / size,
        token_accuracy=right / len(nats),
    )


def assert_same(given: TextScores, expected: TextScores, rel: float = 1e-9) -> None:
    for name in TextScores.__dataclass_fields__:
        assert getattr(given, name) == pytest.approx(getattr(expected, name), rel=rel), name


@pytest.mark.parametrize("context", [2, 5, 11, 1000])
def test_text_is_scored_as_by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: int
) -> None:
    windows, closing = [], []
    for document in DOCUMENTS:
        ids = encode_document(tokenizer, document)
        first = 0
        while first < len(ids) - 1:
            windows.append(ids[first : first + context])
            closing.append(first + context >= len(ids))
            first += context - 1
    size = sum(len(document.encode()) for document in DOCUMENTS)
    expected = by_hand(model, windows, closing, size, len(DOCUMENTS))
    assert expected.tokens == sum(len(encode_document(tokenizer, document)) - 1 for document in DOCUMENTS)
    assert expected.text_tokens == expected.tokens - len(DOCUMENTS)
    assert_same(evaluate_text(model, tokenizer, DOCUMENTS, context), expected)
    assert_same(evaluate_text(model, tokenizer, iter(DOCUMENTS), context, batch_tokens=1), expected)


def test_bytes_are_the_texts_own(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    one, two = (evaluate_text(model, tokenizer, DOCUMENTS[:count], 64) for count in (1, 2))
    assert two.bytes - one.bytes == len(DOCUMENTS[1].encode())


@pytest.fixture
def corpus(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Corpus:
    return write_corpus(DOCUMENTS, tokenizer, tmp_path / "corpus", threads=1)


@pytest.mark.parametrize("seq_len", [7, 32])
def test_corpus_is_scored_as_by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, corpus: Corpus, seq_len: int
) -> None:
    ids = corpus.read(0, corpus.tokens).tolist()
    starts = [*corpus.document_starts(0, corpus.tokens).tolist(), len(ids)]
    windows, closing = [], []
    for first in range(0, len(ids) - 1, seq_len - 1):
        stop = min(first + seq_len, len(ids))
        cuts = [first, *(start for start in starts if first < start < stop), stop]
        for begin, end in itertools.pairwise(cuts):
            windows.append(ids[begin:end])
            closing.append(end in starts)
    expected = by_hand(model, windows, closing, corpus.text_bytes, corpus.documents)
    given = evaluate_corpus(model, corpus, tokenizer, seq_len=seq_len, batch=3)
    assert_same(given, expected)
    assert_same(evaluate_corpus(model, corpus, tokenizer, seq_len=seq_len, batch=100), expected)


def test_part_of_a_corpus_is_the_same_part_each_time(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, corpus: Corpus
) -> None:
    rows = len(PackedSequences(corpus, 9))
    part = evaluate_corpus(model, corpus, tokenizer, seq_len=9, batch=2, max_rows=6)
    assert part == evaluate_corpus(model, corpus, tokenizer, seq_len=9, batch=2, max_rows=6)
    whole = evaluate_corpus(model, corpus, tokenizer, seq_len=9, batch=2)
    assert 0 < part.bytes < whole.bytes
    assert part.tokens <= 6 * 8 < whole.tokens
    enough = evaluate_corpus(model, corpus, tokenizer, seq_len=9, batch=2, max_rows=rows)
    assert_same(enough, whole)


def test_bytes_by_token_are_the_bytes_of_the_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, corpus: Corpus
) -> None:
    """The two ways to count bytes agree, special tokens that stand in a text included."""
    whole = evaluate_corpus(model, corpus, tokenizer, seq_len=16, batch=4)
    tokenizer.add_bos_token = False  # now bytes are counted token by token; the corpus still has its bos
    by_token = evaluate_corpus(model, corpus, tokenizer, seq_len=16, batch=4)
    assert by_token.bytes == whole.bytes == sum(len(document.encode()) for document in DOCUMENTS)


def test_a_tokenizer_without_bos_or_eos(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        pad_token="<|pad|>",
        add_bos_token=False,
    )
    ids = encode_document(bare, DOCUMENTS[0])
    first = len(bare.decode(ids[:1]).encode())
    expected = by_hand(model, [ids], [False], len(DOCUMENTS[0].encode()) - first, 1)
    assert expected.tokens == expected.text_tokens
    assert_same(evaluate_text(model, bare, DOCUMENTS[:1], 1000), expected)


@pytest.mark.parametrize("family", ["mmrec", "llama"])
def test_bfloat16_is_close(
    build_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerBase, family: str
) -> None:
    model = build_model(family).float()
    wide = evaluate_text(model, tokenizer, DOCUMENTS, 64)
    narrow = evaluate_text(model, tokenizer, DOCUMENTS, 64, dtype=torch.bfloat16)
    assert narrow.loss == pytest.approx(wide.loss, rel=0.03)
    assert narrow.loss != wide.loss
    assert evaluate_text(model, tokenizer, DOCUMENTS, 64, dtype=torch.float32) == wide


def test_the_model_is_left_in_its_mode(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    model.train()
    evaluate_text(model, tokenizer, DOCUMENTS, 64)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_cannot_be_scored(
    build_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase, corpus: Corpus
) -> None:
    model = build_model("llama", context_limit=32)
    with pytest.raises(ConfigError, match="context is 1 tokens"):
        evaluate_text(model, tokenizer, DOCUMENTS, 1)
    with pytest.raises(ConfigError, match="at most 32"):
        evaluate_text(model, tokenizer, DOCUMENTS, 33)
    with pytest.raises(ConfigError, match="at most 32"):
        evaluate_corpus(model, corpus, tokenizer, seq_len=33, batch=1)
    for nothing in ([], [""]):
        with pytest.raises(DataError, match="too little text"):
            evaluate_text(model, tokenizer, nothing, 16)
