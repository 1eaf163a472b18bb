"""The fixtures of these tests: a small tokenizer and small random models, read by themselves or by the kernels."""

import pytest
from small_models import BuildModel, build_model, tokenizer, tokenizer_folder  # noqa: F401
from transformers import PreTrainedModel

from mm_rec.inference.engine import Session


@pytest.fixture(params=["mmrec", "llama", "mmrec by the kernels", "llama by the kernels"])
def model(request: pytest.FixtureRequest, build_model: BuildModel) -> PreTrainedModel:  # noqa: F811
    """In float64, which the kernels do not know, or in float32."""
    family, _, kernels = request.param.partition(" by ")
    model = build_model(family)
    return model.float() if kernels else model


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every token that any session takes, in order."""
    taken: list[int] = []
    append = Session.append

    def spy(self: Session, ids: list[int]) -> None:
        taken.extend(ids)
        append(self, ids)

    monkeypatch.setattr(Session, "append", spy)
    return taken
