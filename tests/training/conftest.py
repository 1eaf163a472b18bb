"""A small corpus, as the data layer writes it, and a tokenizer that needs no training."""

import pytest
from small_models import build_model, tokenizer, tokenizer_folder  # noqa: F401
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mm_rec.data.corpus import Corpus, write_corpus

TEXT = [
    "the",
    "cat",
    "sat",
    "on",
    "the",
    "mat",
    "and",
    "the",
    "dog",
    "ran",
    "to",
    "the",
    "red",
    "house",
    "by",
    "the",
    "sea",
    "where",
    "a",
    "boy",
    "sang",
]


@pytest.fixture(scope="session")
def word_tokenizer() -> PreTrainedTokenizerBase:
    """One id a word."""
    words = {word: index for index, word in enumerate(["<pad>", "<eos>", "<unk>", *dict.fromkeys(TEXT)])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<eos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        add_bos_token=True,
    )


@pytest.fixture(scope="session")
def corpus(word_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """60 documents of 5 to 24 words."""
    documents = (" ".join(TEXT[(7 * i + j) % len(TEXT)] for j in range(5 + i % 20)) for i in range(60))
    return write_corpus(documents, word_tokenizer, tmp_path_factory.mktemp("corpus") / "train")
