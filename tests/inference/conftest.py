"""The fixtures of these tests: a small tokenizer and small random models, read by themselves or by the kernels."""

from collections.abc import Iterator

import pytest
from small_models import BuildModel, build_model, tokenizer, tokenizer_folder  # noqa: F401
from transformers import PreTrainedModel

from mm_rec import cpu
from mm_rec.inference.engine import Session
from mm_rec.inference.native.library import library


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


@pytest.fixture(params=["x86-64-v2", "x86-64-v3", cpu.NATIVE], scope="module")
def isa(request: pytest.FixtureRequest, compiler: str) -> Iterator[str]:
    """A test runs with the kernels compiled for older processors too, and for this one."""
    name: str = request.param
    own = cpu.vector_isa()
    if name != cpu.NATIVE and own == "neon":
        pytest.skip(f"{name} is a level of x86-64")
    if name == "x86-64-v3" and own == "sse4_2":
        pytest.skip("this processor has no AVX2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cpu.ISA_VARIABLE, name)
        library.cache_clear()
        yield name
    library.cache_clear()
