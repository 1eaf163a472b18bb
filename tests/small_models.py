"""A small tokenizer and two small random models, MM-Rec and LLaMA, in float64 so that equal means equal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.models.mmrec.configuration_mmrec import MMRecConfig
from mm_rec.models.presets import build
from mm_rec.tokenizers.loading import load_tokenizer
from mm_rec.tokenizers.training import TokenizerConfig, train_tokenizer

VOCABULARY = 400
TEXTS = (
    "Once there was a girl called Ayşe. She lived by the river and sang old songs.",
    "Küçük çocuk ırmağın kıyısında oturdu. İhtiyar balıkçı ona bir öykü anlattı.",
    "What does she see? She sees the stars. Ne görüyor? Yıldızları görüyor.",
)

BuildModel = Callable[..., PreTrainedModel]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "small"
    train_tokenizer(lambda: TEXTS * 3, TokenizerConfig(vocab_size=VOCABULARY, threads=1), folder)
    return folder


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(tokenizer_folder)


def build_small(family: str, context_limit: int = 4096, vocabulary: int = VOCABULARY) -> PreTrainedModel:
    """Build a small model; weights larger than usual, so that its predictions differ clearly from each other."""
    shape = {"vocab_size": vocabulary, "hidden_size": 64, "num_hidden_layers": 2, "initializer_range": 0.2}
    if family == "mmrec":
        config = MMRecConfig(**shape, memory_key_dim=16, memory_value_dim=16, chunk_size=8)
    else:
        config = LlamaConfig(
            **shape, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
            max_position_embeddings=context_limit, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
    # Seeds with which random weights write what tests need to meet: several calls, an end of their own.
    return build(config, seed=6 if family == "mmrec" else 3).double().eval()


@pytest.fixture
def build_model() -> BuildModel:
    """What builds a small model."""
    return build_small


@pytest.fixture(params=["mmrec", "llama"])
def model(request: pytest.FixtureRequest, build_model: BuildModel) -> PreTrainedModel:
    return build_model(request.param)
