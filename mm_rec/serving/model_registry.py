"""The models of a server: each with its engine, its tokenizer, and the names under which requests find it.

Nothing that a request says names a file: it names one of these, or nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from mm_rec.errors import ConfigError, TokenizerError
from mm_rec.inference.engine import Engine, Session
from mm_rec.inference.fingerprints import compute_state_fingerprint, weights_fingerprint
from mm_rec.inference.generate import stop_ids
from mm_rec.inference.grammar.compiler import GrammarCompiler
from mm_rec.inference.grammar.token_bytes import token_bytes
from mm_rec.inference.prefix_cache import PrefixCache
from mm_rec.inference.scheduler import Scheduler
from mm_rec.models.adapters import adapters_of
from mm_rec.serving.errors import ApiError

DEFAULT_ALIAS = "mm-rec-100m"  # the name in the documents' request: whatever model is first


class ServedModel:
    """A model at work: requests share its engine, and all models a scheduler.

    `adapters`: the digest of each adapter's weights, by name; each is applied by itself, as heavily as it was loaded.
    """

    def __init__(
        self, name: str, engine: Engine, tokenizer: PreTrainedTokenizerBase, scheduler: Scheduler, *,
        adapters: Mapping[str, str], prefix_cache_bytes: int,
    ) -> None:  # fmt: skip
        self.name, self.engine, self.tokenizer = name, engine, tokenizer
        self.adapters = dict(adapters)
        self.created = int(time.time())
        self.scheduler = scheduler
        self.prefix_cache = PrefixCache(prefix_cache_bytes)
        self.stop_ids = stop_ids(tokenizer, engine.model)
        self.weights = weights_fingerprint(engine.model)
        on_model = adapters_of(engine.model)
        self.adapter_weights = {} if on_model is None else dict(on_model.loaded)
        self._grammars: GrammarCompiler | None = None
        self._grammars_lock = threading.Lock()

    @property
    def system_fingerprint(self) -> str:
        """Return the shortened hash of the weights, under OpenAI's name."""
        return f"fp_{self.weights[:12]}"

    @property
    def context_limit(self) -> int | None:
        """Return the context length in tokens; None where there is no limit."""
        return self.engine.context_limit

    @cached_property
    def bytes_per_token(self) -> int:
        """Return the bytes by which a further token makes a conversation's state grow: 0 for MM-Rec."""
        return self.engine.session({}).state.bytes_per_token

    @property
    def grammars(self) -> GrammarCompiler:
        """Return the grammars of this tokenizer; made when first needed, by one thread."""
        with self._grammars_lock:
            if self._grammars is None:
                rows: int = self.engine.model.config.get_text_config().vocab_size
                self._grammars = GrammarCompiler(self.tokenizer, rows, self.stop_ids)
            return self._grammars

    @cached_property
    def _bytes(self) -> list[bytes]:
        try:
            return token_bytes(self.tokenizer)
        except TokenizerError:  # a kind of tokenizer that is not known
            return []

    def token_text(self, token: int) -> bytes:
        """Return the bytes of a token in the middle of a text; of a special token its name."""
        known = self._bytes[token] if token < len(self._bytes) else b""
        return known or str(self.tokenizer.decode([token], skip_special_tokens=False)).encode()


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


@dataclass
class ModelRegistry:
    """Models by name, their adapters as MODEL:ADAPTER, and aliases of both."""

    models: list[ServedModel]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.variants: dict[str, ModelVariant] = {}
        for model in self.models:
            self._add(ModelVariant(model.name, model))
            for adapter in model.adapters:
                self._add(ModelVariant(f"{model.name}:{adapter}", model, adapter))
        for alias, name in self.aliases.items():
            if name not in self.variants:
                known = ", ".join(self.variants)
                raise ConfigError(f"--alias {alias}={name}: there is no model {name!r}; there are {known}")
            if alias in self.variants:
                raise ConfigError(f"--alias {alias}={name}: {alias!r} is the name of a model already")
        self.aliases = (
            {DEFAULT_ALIAS: self.models[0].name, **self.aliases}
            if DEFAULT_ALIAS not in self.variants
            else self.aliases
        )

    @property
    def scheduler(self) -> Scheduler:
        """Return the scheduler of all models."""
        return self.models[0].scheduler

    def _add(self, variant: ModelVariant) -> None:
        if variant.name in self.variants:
            raise ConfigError(f"two models have the name {variant.name!r}; give one another: NAME=MODEL")
        self.variants[variant.name] = variant

    def find(self, name: str) -> ModelVariant:
        """Return the variant of a name or alias; raises ApiError, 404, where there is none."""
        variant = self.variants.get(self.aliases.get(name, name))
        if variant is None:
            raise ApiError(
                404, f"there is no model {name[:100]!r} here; {self._choices()}", "model", "model_not_found"
            )
        return variant

    def close(self) -> None:
        """End all running requests."""
        self.scheduler.close()

    def _choices(self) -> str:
        return f"there are {', '.join([*self.variants, *self.aliases])}"
