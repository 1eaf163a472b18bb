"""The fixtures of these tests: a small tokenizer and small random models, read by themselves or by the kernels."""

import pytest
from small_models import BuildModel, build_model, tokenizer, tokenizer_folder  # noqa: F401
from transformers import PreTrainedModel


@pytest.fixture(params=["mmrec", "llama", "mmrec by the kernels", "llama by the kernels"])
def model(request: pytest.FixtureRequest, build_model: BuildModel) -> PreTrainedModel:  # noqa: F811
    """In float64, which the kernels do not know, or in float32."""
    family, _, kernels = request.param.partition(" by ")
    model = build_model(family)
    return model.float() if kernels else model
