"""A model with its tokenizer and adapters, ready to generate."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.inference.engine import Engine
from mm_rec.inference.fingerprints import adapter_digests, weights_fingerprint
from mm_rec.inference.generate import stop_ids
from mm_rec.models.adapters import adapters_of


class LoadedModel:
    """A model, its tokenizer, its engine, and what ends its answers.

    `ref`: where it was read, if it was; `adapters`: those on it, "FOLDER" or "FOLDER=WEIGHT". `threads`: of the kernels
    (default: as many as torch uses in this thread).
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ref: Path | str = "",
        adapters: Sequence[str] = (), *, int8: bool = False, threads: int | None = None, notice: str = "",
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.ref, self.adapters = model, tokenizer, ref, tuple(adapters)
        self._int8, self._threads, self._notice = int8, threads, notice

    @cached_property
    def engine(self) -> Engine:
        """The engine, prepared when it is first needed: measures that only read need none."""
        return Engine(self.model, int8=self._int8, threads=self._threads)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The ids of the tokens that end an answer."""
        return stop_ids(self.tokenizer, self.model)

    @property
    def notice(self) -> str:
        """Why generation is slower than it could be; empty where it is not."""
        if self._notice or self.engine.device.type != "cpu":
            return self._notice
        return self.engine.fallback_reason

    @cached_property
    def weights_fingerprint(self) -> str:
        """The hash of the model's own weights, whatever adapters are on it."""
        return weights_fingerprint(self.model)

    @cached_property
    def adapter_digests(self) -> dict[str, str]:
        """The hash of each adapter's file, by the adapter's name."""
        return adapter_digests(self.model, self.adapters)

    @property
    def adapter_weights(self) -> dict[str, float]:
        """The weight that each adapter was loaded with, by its name."""
        on_model = adapters_of(self.model)
        return {} if on_model is None else dict(on_model.loaded)
