"""A model that is served: what requests to it share, and how many use it now."""

from __future__ import annotations

import threading
import time
from functools import cached_property

from mm_rec.errors import TokenizerError
from mm_rec.inference.grammar.compiler import GrammarCompiler
from mm_rec.inference.grammar.token_bytes import token_bytes
from mm_rec.inference.loaded_model import LoadedModel
from mm_rec.inference.prefix_cache import PrefixCache
from mm_rec.inference.scheduler import Scheduler


class ServedModel:
    """A loaded model under a name: requests share its engine, and all models a scheduler.

    `adapters`: the digest of each adapter's weights, by name; each is applied by itself, as heavily as it was loaded.
    `num_leases` counts the requests that use the model now.
    """

    def __init__(
        self, name: str, loaded: LoadedModel, scheduler: Scheduler, *, prefix_cache_bytes: int
    ) -> None:
        self.name, self.loaded, self.scheduler = name, loaded, scheduler
        self.engine, self.tokenizer, self.stop_ids = loaded.engine, loaded.tokenizer, loaded.stop_ids
        self.weights = loaded.weights_fingerprint
        self.adapters, self.adapter_weights = loaded.adapter_digests, loaded.adapter_weights
        self.created = int(time.time())
        self.prefix_cache = PrefixCache(prefix_cache_bytes)
        self.num_leases = 0
        self._grammars: GrammarCompiler | None = None
        self._grammars_lock = threading.Lock()

    @property
    def variants(self) -> dict[str, str | None]:
        """Return the names that requests find it under, MODEL and MODEL:ADAPTER, each with its adapter."""
        return {self.name: None, **{f"{self.name}:{adapter}": adapter for adapter in self.adapters}}

    def let_go(self) -> None:
        """Let go of what is kept for further requests: there are none."""
        self.prefix_cache.clear()
        self.engine.model.adapters = None  # they hold the model: a cycle

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
        """Return the bytes that a further token adds to a conversation's state: 0 for MM-Rec without attention."""
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
