"""A real server on a free port of this machine, with small random models, for tests of everything that asks it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from small_models import build_small
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from waiting import LONGEST, until

from mm_rec.inference.loaded_model import LoadedModel
from mm_rec.inference.manager import ModelManager
from mm_rec.inference.scheduler import Scheduler
from mm_rec.inference.served_model import ServedModel
from mm_rec.serving.access import AccessPolicy
from mm_rec.serving.app import create_app
from mm_rec.serving.connections import ConnectionLimits
from mm_rec.serving.context import RequestLimits, ServerContext
from mm_rec.serving.model_registry import ModelRegistry
from mm_rec.serving.server import GracefulServer, listen
from mm_rec.serving.sessions import SessionManager
from mm_rec.store.retention import Retention
from mm_rec.store.store import Store

MIB = 2**20


def small_model(
    family: str, tokenizer: PreTrainedTokenizerBase, *, name: str = "", context: int = 4096,
    scheduler: Scheduler | None = None, model: PreTrainedModel | None = None,
    adapters: Sequence[str] = (),
) -> ServedModel:  # fmt: skip
    """A random model in float32, at work by the kernels; `adapters`: the folders of those on it."""
    model = model or build_small(family, context, len(tokenizer)).float()
    loaded = LoadedModel(model, tokenizer, adapters=adapters)
    return ServedModel(name or family, loaded, scheduler or Scheduler(), prefix_cache_bytes=64 * MIB)


class Server:
    """Serves from a thread until `stop`; `url` is its address, `app` and `context` what it works with."""

    def __init__(
        self, models: Sequence[ServedModel], folder: Path, *, store: str = "", policy: AccessPolicy | None = None,
        limits: RequestLimits | None = None, truncate: bool = False, grace_seconds: float = 0.5,
        connections: ConnectionLimits | None = None, log_prompts: bool = False,
        retention: Retention | None = None, share_prefixes: bool = False,
    ) -> None:  # fmt: skip
        self.folder = folder
        opened = Store(store or f"sqlite:///{folder}/store.db", retention)
        sessions = SessionManager(opened, folder / "sessions", 64 * MIB)
        limits = limits or RequestLimits(max_tokens=256)
        self.manager = ModelManager(models[0].scheduler, device="cpu", prefix_cache_bytes=64 * MIB)
        for model in models:
            self.manager.add(model)
        self.context = ServerContext(
            ModelRegistry(self.manager),
            opened,
            sessions,
            limits,
            truncate=truncate,
            share_prefixes=share_prefixes,
        )
        self.app = create_app(self.context, policy or AccessPolicy(), log_prompts=log_prompts)
        self._server = GracefulServer(self.app, grace_seconds, limits=connections)
        listening = listen("127.0.0.1", 0)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), daemon=True)
        self._thread.start()
        until(lambda: self._server.started, self._thread.is_alive)
        self.port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def open_connections(self) -> list[Any]:
        """uvicorn's connections."""
        return list(self._server.server_state.connections)

    def stop(self) -> None:
        """End it, as Ctrl-C would."""
        self._server.should_exit = True
        self._thread.join(LONGEST)
        assert not self._thread.is_alive(), "the server did not end"
