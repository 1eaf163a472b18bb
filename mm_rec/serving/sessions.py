"""Sessions: conversations whose state is kept, so that each turn costs only its own tokens, whatever came before.

The state of a session is in a file, written after every turn, so nothing is lost when the server stops. It is in memory
too, while there is room. A session belongs to its key, its model with the very same weights, its adapter and template.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakSet

from mm_rec.errors import CheckpointError
from mm_rec.inference.engine import Engine, Session
from mm_rec.inference.served_model import ServedModel
from mm_rec.serving.errors import ApiError
from mm_rec.serving.model_registry import ModelVariant
from mm_rec.serving.store.store import Store
from mm_rec.serving.store.tables import SavedSession, new_session_file

MAX_SESSIONS = 1_000  # of one owner
_STALE_SECONDS = 3_600  # seconds after which a file that no session names was left by a killed server


@dataclass(slots=True)
class SessionTurn:
    """One turn of a session: its row, and a copy of its state that the turn may change."""

    row: SavedSession
    session: Session


class SessionManager:
    """The sessions of a server; their files are in one folder, under names that no client chooses."""

    def __init__(self, store: Store, folder: Path, max_bytes: int) -> None:
        self._store, self._folder, self._max_bytes = store, folder, max_bytes
        self._in_memory: OrderedDict[str, Session] = OrderedDict()
        self._unloaded: WeakSet[Engine] = WeakSet()
        self._busy: set[str] = set()
        self._lock = Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._remove_orphaned_files()

    def create(self, owner: str | None, variant: ModelVariant, session: Session) -> SavedSession:
        """Store a session, perhaps an empty one; raises ApiError where there are too many."""
        if self._store.list_sessions(owner, limit=MAX_SESSIONS - 1).has_more:
            raise ApiError(
                400,
                f"there are {MAX_SESSIONS:,} sessions already; delete some first",
                code="too_many_sessions",
            )
        file_name = self._write(variant, session)
        row = self._store.create_session(
            owner,
            model=variant.model.name,
            adapter=variant.adapter,
            length=session.length,
            file_name=file_name,
        )
        self._cache(row.id, session)
        return row

    def get(self, owner: str | None, session_id: str) -> SavedSession:
        """Return a session of an owner; raises ApiError, 404."""
        row = self._store.get_session(owner, session_id)
        if row is None:
            raise ApiError(404, f"there is no session {session_id[:100]!r}", "session", "session_not_found")
        return row

    @contextlib.contextmanager
    def turn(self, owner: str | None, session_id: str, variant: ModelVariant) -> Iterator[SessionTurn]:
        """Lock a session for one turn; it stays as it was until `commit`.

        Raises ApiError: 404 for none, 400 for another model's, 409 for one that is locked, or whose
        model, adapter or template is not what it was.
        """
        row = self.get(owner, session_id)
        with self._lock:
            if session_id in self._busy:
                raise ApiError(
                    409, "another request goes on with this session; wait for it", "session", "session_busy"
                )
            self._busy.add(session_id)
        try:
            row = self.get(owner, session_id)  # as it is now that nobody changes it
            yield SessionTurn(row, self._load(row, variant))
        finally:
            with self._lock:
                self._busy.discard(session_id)

    def commit(self, owner: str | None, turn: SessionTurn, variant: ModelVariant, session: Session) -> None:
        """End a turn: store `session` as the new state."""
        file_name = self._write(variant, session)
        row = self._store.update_session(owner, turn.row.id, session.length, file_name)
        if row is None:  # deleted meanwhile
            self._remove(file_name)
            return
        self._remove(turn.row.file_name)
        self._cache(turn.row.id, session)

    def fork(self, owner: str | None, session_id: str, variant: ModelVariant) -> SavedSession:
        """Return a new session with the same state."""
        with self.turn(owner, session_id, variant) as turn:
            return self.create(owner, variant, turn.session)

    def delete(self, owner: str | None, session_id: str) -> SavedSession:
        """Delete a session and its file."""
        row = self._store.delete_session(owner, session_id)
        if row is None:
            return self.get(owner, session_id)  # which says that there is none
        with self._lock:
            self._in_memory.pop(session_id, None)
        self._remove(row.file_name)
        return row

    def let_go(self, model: ServedModel) -> None:
        """Let go of the states of a model that is unloaded; their files stay."""
        with self._lock:
            self._unloaded.add(model.engine)
            of_model = [name for name, one in self._in_memory.items() if one.engine is model.engine]
            for name in of_model:
                del self._in_memory[name]

    def to_object(self, row: SavedSession, variant: ModelVariant | None) -> dict[str, Any]:
        """Return a session as the API shows it, with its cost per token where its model is served now."""
        path = self._folder / row.file_name
        return {
            "id": row.id,
            "object": "session",
            "created": row.created,
            "last_used": row.used,
            "model": row.name,
            "length": row.length,
            "bytes": path.stat().st_size if path.exists() else 0,
            "bytes_per_token": None if variant is None else variant.model.bytes_per_token,
        }

    def _load(self, row: SavedSession, variant: ModelVariant) -> Session:
        if (row.model, row.adapter) != (variant.model.name, variant.adapter):
            raise ApiError(
                400, f"this session belongs to the model {row.name!r}; send that", "model", "invalid_value"
            )
        with self._lock:
            live = self._in_memory.get(row.id)
        if live is not None and live.engine is variant.model.engine:
            return live.fork()
        try:
            return variant.model.engine.load_session(self._folder / row.file_name, variant.state_fingerprint)
        except CheckpointError as error:
            reason = str(error).replace(f"{self._folder / row.file_name}: ", "")
            raise ApiError(
                409, f"this session cannot be gone on with: {reason}", "session", "session_stale"
            ) from error

    def _write(self, variant: ModelVariant, session: Session) -> str:
        name = new_session_file()
        session.save(self._folder / name, variant.state_fingerprint)
        return name

    def _cache(self, session_id: str, session: Session) -> None:
        """Keep a state in memory; the least recently used ones make room."""
        with self._lock:
            self._in_memory.pop(session_id, None)
            if session.engine in self._unloaded:  # its client gave up, and this thread went on
                return
            self._in_memory[session_id] = session
            while sum(one.state.nbytes for one in self._in_memory.values()) > self._max_bytes:
                self._in_memory.popitem(last=False)

    def _remove(self, file_name: str) -> None:
        (self._folder / file_name).unlink(missing_ok=True)

    def _remove_orphaned_files(self) -> None:
        known, old = self._store.session_files(), time.time() - _STALE_SECONDS
        for path in self._folder.glob("*.safetensors"):
            if path.name not in known and path.stat().st_mtime < old:
                path.unlink(missing_ok=True)
