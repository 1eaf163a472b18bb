"""Sessions: conversations whose state is kept, so that each turn costs only its own tokens, whatever came before.

The state of a session is in a file, written after every turn, so nothing is lost when the server stops. It is in memory
too, while there is room. A session belongs to its key, its model with the very same weights, its adapter and template.

Several servers of one store share the sessions and their folder. A turn leases its session in the store, and a state in
memory is gone on with only where no other server has had a turn since.
"""

from __future__ import annotations

import contextlib
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
from mm_rec.serving.periodic import PeriodicTask
from mm_rec.serving.session_folder import SessionFolder
from mm_rec.store.health import StoreUnavailableError
from mm_rec.store.retention import QuotaExceededError
from mm_rec.store.store import Store
from mm_rec.store.tables import SavedSession, new_id

_LEASE_SECONDS = 60  # after which the session of a killed server can be gone on with
_RENEW_SECONDS = 20
_CLEAN_SECONDS = 3_600  # between two looks for what is too old
_RETRY_AFTER = {"Retry-After": "1"}  # seconds: where another turn goes on


@dataclass(slots=True)
class SessionTurn:
    """One turn of a session: its row, and a copy of its state that the turn may change."""

    row: SavedSession
    session: Session


class SessionManager:
    """The sessions of a server; their files are in one folder, under names that no client chooses.

    Raises ConfigError where the folder is another store's.
    """

    def __init__(self, store: Store, folder: Path, max_bytes: int) -> None:
        self._store, self._max_bytes = store, max_bytes
        self._folder = SessionFolder(folder, store)
        # By the id of a session, its state and the version of the row that the state is of.
        self._in_memory: OrderedDict[str, tuple[int, Session]] = OrderedDict()
        self._unloaded: WeakSet[Engine] = WeakSet()
        self._leases: set[str] = set()
        self._lock = Lock()
        self.clean()
        self._tasks = [
            PeriodicTask("session leases", _RENEW_SECONDS, self._renew_leases),
            PeriodicTask("session folder", _RENEW_SECONDS, self._folder.check),
            PeriodicTask("expired sessions", _CLEAN_SECONDS, self.clean),
        ]

    def close(self) -> None:
        """End the threads."""
        for task in self._tasks:
            task.close()

    def clean(self) -> None:
        """Delete what is older than the store may keep, and what killed servers left in the folder."""
        for row in self._store.delete_expired():
            self._forget(row)
        self._folder.remove_leftovers()

    def create(self, owner: str | None, variant: ModelVariant, session: Session) -> SavedSession:
        """Store a session, perhaps an empty one; raises ApiError where there are too many."""
        with _quota_as_api_error():
            self._store.require_session_room(owner, 1, 0)  # before a file is written in vain
        file_name, size = self._folder.write(variant, session)
        try:
            with _quota_as_api_error():
                row = self._store.create_session(
                    owner,
                    model=variant.model.name,
                    adapter=variant.adapter,
                    length=session.length,
                    file_name=file_name,
                    size=size,
                )
        except ApiError:
            self._folder.remove(file_name)
            raise
        self._cache(row, session)
        return row

    def get(self, owner: str | None, session_id: str) -> SavedSession:
        """Return a session of an owner; raises ApiError, 404."""
        row = self._store.get_session(owner, session_id)
        if row is None:
            raise ApiError(404, f"there is no session {session_id[:100]!r}", "session", "session_not_found")
        return row

    @contextlib.contextmanager
    def turn(self, owner: str | None, session_id: str, variant: ModelVariant) -> Iterator[SessionTurn]:
        """Lease a session for one turn; it stays as it was until `commit`.

        Raises ApiError: 404 for none, 400 for another model's or where the owner's sessions take too much, 409 for one
        that is leased, or whose model, adapter or template is not what it was.
        """
        with _quota_as_api_error():
            self._store.require_session_room(owner, 0, 0)
        holder = new_id("turn")
        row = self._lease(owner, session_id, holder)
        try:
            yield SessionTurn(row, self._load(row, variant))
        finally:
            self._release(holder)

    def commit(self, owner: str | None, turn: SessionTurn, variant: ModelVariant, session: Session) -> None:
        """End a turn: store `session` as the new state.

        Raises ApiError, 409, where another server went on with it: this one could not renew its lease.
        """
        file_name, size = self._folder.write(variant, session)
        # Where this fails, the file stays for now: a connection may break when all is done.
        row = self._store.update_session(turn.row, length=session.length, file_name=file_name, size=size)
        if row is None:
            self._folder.remove(file_name)
            if self._store.get_session(owner, turn.row.id) is not None:
                raise _busy()
            return  # deleted meanwhile
        with self._lock:
            self._leases.discard(str(turn.row.lease_holder))
        self._folder.remove(turn.row.file_name)
        self._cache(row, session)

    def fork(self, owner: str | None, session_id: str, variant: ModelVariant) -> SavedSession:
        """Return a new session with the same state."""
        with self.turn(owner, session_id, variant) as turn:
            return self.create(owner, variant, turn.session)

    def delete(self, owner: str | None, session_id: str) -> SavedSession:
        """Delete a session and its file."""
        row = self._store.delete_session(owner, session_id)
        if row is None:
            return self.get(owner, session_id)  # which says that there is none
        self._forget(row)
        return row

    def let_go(self, model: ServedModel) -> None:
        """Let go of the states of a model that is unloaded; their files stay."""
        with self._lock:
            self._unloaded.add(model.engine)
            of_model = [name for name, (_, one) in self._in_memory.items() if one.engine is model.engine]
            for name in of_model:
                del self._in_memory[name]

    def to_object(self, row: SavedSession, variant: ModelVariant | None) -> dict[str, Any]:
        """Return a session as the API shows it, with its cost per token where its model is served now."""
        return {
            "id": row.id,
            "object": "session",
            "created": row.created,
            "last_used": row.used,
            "model": row.name,
            "length": row.length,
            "bytes": row.bytes or self._folder.size(row.file_name),
            "bytes_per_token": None if variant is None else variant.model.bytes_per_token,
        }

    def _load(self, row: SavedSession, variant: ModelVariant) -> Session:
        if (row.model, row.adapter) != (variant.model.name, variant.adapter):
            raise ApiError(
                400, f"this session belongs to the model {row.name!r}; send that", "model", "invalid_value"
            )
        with self._lock:
            version, live = self._in_memory.get(row.id, (None, None))
        if live is not None and version == row.version and live.engine is variant.model.engine:
            return live.fork()
        path = self._folder.path / row.file_name
        try:
            return variant.model.engine.load_session(path, variant.state_fingerprint)
        except CheckpointError as error:
            reason = str(error).removeprefix(f"{path}: ").replace(str(path), "its file")
            raise ApiError(
                409, f"this session cannot be gone on with: {reason}", "session", "session_stale"
            ) from error

    def _lease(self, owner: str | None, session_id: str, holder: str) -> SavedSession:
        row = self._store.lease_session(owner, session_id, holder, _LEASE_SECONDS)
        if row is None:
            self.get(owner, session_id)  # which says where there is none
            raise _busy()
        with self._lock:
            self._leases.add(holder)
        return row

    def _release(self, holder: str) -> None:
        """End a lease, but for that of a turn which was stored."""
        with self._lock:
            if holder not in self._leases:
                return
            self._leases.discard(holder)
        with contextlib.suppress(StoreUnavailableError):  # it ends by itself
            self._store.release_session(holder)

    def _renew_leases(self) -> None:
        with self._lock:
            holders = list(self._leases)
        if holders:
            self._store.renew_leases(holders, _LEASE_SECONDS)

    def _cache(self, row: SavedSession, session: Session) -> None:
        """Keep a state in memory; the least recently used ones make room."""
        with self._lock:
            self._in_memory.pop(row.id, None)
            if session.engine in self._unloaded:  # its client gave up, and this thread went on
                return
            self._in_memory[row.id] = (row.version, session)
            while sum(one.state.nbytes for _, one in self._in_memory.values()) > self._max_bytes:
                self._in_memory.popitem(last=False)

    def _forget(self, row: SavedSession) -> None:
        """Let go of a session that was deleted, and remove its file."""
        with self._lock:
            self._in_memory.pop(row.id, None)
        self._folder.remove(row.file_name)


def _busy() -> ApiError:
    message = "another request goes on with this session; wait for its answer and ask again"
    return ApiError(409, message, "session", "session_busy", headers=_RETRY_AFTER)


@contextlib.contextmanager
def _quota_as_api_error() -> Iterator[None]:
    try:
        yield
    except QuotaExceededError as error:
        raise ApiError(400, str(error), code="too_many_sessions") from error
