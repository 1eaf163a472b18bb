"""The names under which requests find the models of a server.

Nothing that a request says names a file: it names one of these, or nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mm_rec.errors import ConfigError
from mm_rec.inference.engine import Session
from mm_rec.inference.fingerprints import compute_state_fingerprint
from mm_rec.inference.manager import ModelManager, UnknownModelError
from mm_rec.inference.scheduler import Scheduler
from mm_rec.inference.served_model import ServedModel
from mm_rec.serving.errors import ApiError

DEFAULT_ALIAS = "mm-rec-100m"  # the name in the documents' request: whatever model is first


@dataclass(frozen=True)
class ModelVariant:
    """A model, perhaps with one of its adapters: what a model name in a request refers to."""

    name: str
    model: ServedModel
    adapter: str | None = None

    @property
    def adapters(self) -> dict[str, float]:
        """Return the weight of each applied adapter, by name."""
        return (
            {} if self.adapter is None else {self.adapter: self.model.adapter_weights.get(self.adapter, 1.0)}
        )

    def session(self) -> Session:
        """Return an empty session."""
        return self.model.engine.session(self.adapters)

    @property
    def state_fingerprint(self) -> dict[str, str]:
        """Return the fingerprints of all that a saved state depends on."""
        model = self.model
        return compute_state_fingerprint(
            model.weights, model.tokenizer, model.engine.precision, self.adapters, model.adapters
        )


class ModelRegistry:
    """The names of a server's models: their own, their adapters' as MODEL:ADAPTER, and aliases of both.

    What is loaded is the manager's matter; names are looked up at each request.
    """

    def __init__(self, manager: ModelManager, aliases: Mapping[str, str] | None = None) -> None:
        """Raises ConfigError for an alias of nothing, or one that is a model's name."""
        self.manager, self._aliases = manager, dict(aliases or {})
        variants = self.variants
        for alias, name in self._aliases.items():
            if name not in variants:
                known = ", ".join(variants)
                raise ConfigError(f"--alias {alias}={name}: there is no model {name!r}; there are {known}")
            if alias in variants:
                raise ConfigError(f"--alias {alias}={name}: {alias!r} is the name of a model already")

    @property
    def models(self) -> list[ServedModel]:
        """Return the models that are served now."""
        return self.manager.models

    @property
    def variants(self) -> dict[str, ModelVariant]:
        """Return what requests can name now, without aliases."""
        return {
            name: ModelVariant(name, model, adapter)
            for model in self.models
            for name, adapter in model.variants.items()
        }

    @property
    def aliases(self) -> dict[str, str]:
        """Return the aliases of what is served now."""
        variants = self.variants
        first = {DEFAULT_ALIAS: next(iter(variants))} if variants else {}
        return {
            alias: name
            for alias, name in {**first, **self._aliases}.items()
            if name in variants and alias not in variants
        }

    @property
    def scheduler(self) -> Scheduler:
        """Return the scheduler of all models."""
        return self.manager.scheduler

    def find(self, name: str | None) -> ModelVariant:
        """Return the variant of a name or alias, or the first; raises ApiError, 404, where there is none."""
        variants = self.variants
        if name is None:
            name = next(iter(variants), "")
        variant = variants.get(self.aliases.get(name, name))
        if variant is None:
            raise self._unknown(name)
        return variant

    @contextlib.contextmanager
    def lease(self, name: str | None) -> Iterator[ModelVariant]:
        """Use the variant of a name or alias, or the first; it stays loaded meanwhile. Raises ApiError as `find`."""
        name = self.find(name).name
        with contextlib.ExitStack() as stack:
            try:
                model = stack.enter_context(self.manager.lease(name))
            except UnknownModelError as error:  # unloaded just now
                raise self._unknown(name) from error
            yield ModelVariant(name, model, model.variants[name])

    def _unknown(self, name: str) -> ApiError:
        choices = ", ".join([*self.variants, *self.aliases]) or "none"
        what = f"there is no model {name[:100]!r} here" if name else "the name of the model is empty"
        return ApiError(404, f"{what}; there are {choices}", "model", "model_not_found")

    def close(self) -> None:
        """End all running requests."""
        self.manager.close()
