"""The folder of the sessions' states, which belongs to one store.

The store's identifier lies in it. All servers of that store share the folder; those of another store refuse it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from mm_rec.errors import ConfigError, DataError
from mm_rec.inference.engine import Session
from mm_rec.serving.model_registry import ModelVariant
from mm_rec.store.health import StoreUnavailableError
from mm_rec.store.store import Store
from mm_rec.store.tables import new_session_file

MARKER = "store-id"
_STALE_SECONDS = 3_600  # seconds after which a file that no session names was left by a killed server
_READ_SECONDS = 5.0  # that another server may take between making the marker and writing it
_FAULT = "the states of sessions cannot be written"


class SessionFolder:
    """The files of a store's sessions; raises ConfigError where the folder is another store's, or cannot be used."""

    def __init__(self, path: Path, store: Store) -> None:
        self.path, self._store = path, store
        self._failed_bytes = 0  # of the last state, where it could not be written
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)  # a state holds what was said
            self._claim()
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise ConfigError(
                f"--sessions {path}: states cannot be kept there ({reason}). Name a folder that can be written to"
            ) from error

    def write(self, variant: ModelVariant, session: Session) -> tuple[str, int]:
        """Write a state to a new file; returns its name and size. Raises StoreUnavailableError where that fails."""
        name = new_session_file()
        with self._watched(session.state.nbytes):
            session.save(self.path / name, variant.state_fingerprint)
            return name, (self.path / name).stat().st_size

    def check(self) -> None:
        """Where the last state could not be written, try whether there is room for as much now."""
        if not self._failed_bytes:
            return
        probe = self.path / f".{new_session_file()}.probe.tmp"
        try:
            with self._watched(self._failed_bytes):
                probe.write_bytes(bytes(self._failed_bytes))
        finally:
            probe.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _watched(self, size: int) -> Iterator[None]:
        """Tell the store's health whether so many bytes could be written."""
        try:
            yield
        except (OSError, DataError, SafetensorError) as error:
            full = any(sign in str(error) for sign in ("disk is full", "No space left"))
            fault = f"{_FAULT}: {'the disk is full' if full else 'the folder cannot be written'}"
            self._failed_bytes = size
            self._store.health.report(_FAULT, fault, str(error))
            raise StoreUnavailableError(f"{fault}; ask again later") from error
        self._failed_bytes = 0
        self._store.health.report(_FAULT, None)

    def remove(self, name: str) -> None:
        """Remove a file."""
        (self.path / name).unlink(missing_ok=True)

    def size(self, name: str) -> int:
        """The bytes of a file; 0 where it is gone."""
        with contextlib.suppress(OSError):
            return (self.path / name).stat().st_size
        return 0

    def remove_leftovers(self) -> None:
        """Remove what killed servers left: half files, and states that no session of the store names.

        States from before the folder had an identifier stay: they may be another store's.
        """
        known, old = self._store.session_files(), time.time() - _STALE_SECONDS
        claimed = (self.path / MARKER).stat().st_mtime
        for path in self.path.glob("*.safetensors"):
            if path.name not in known and claimed < _modified(path) < old:
                path.unlink(missing_ok=True)
        for path in self.path.glob(".*.safetensors.*.tmp"):
            if _modified(path) < old:
                path.unlink(missing_ok=True)

    def _claim(self) -> None:
        """Write the store's identifier into the folder, or find it there."""
        marker = self.path / MARKER
        if marker.exists() and not _read(marker):
            marker.unlink(missing_ok=True)  # of a server that was killed, or whose disk was full
        if not marker.exists():
            self._require_own_files()
            with contextlib.suppress(FileExistsError), marker.open("x", encoding="utf-8") as file:
                file.write(self._store.id)
        if _read(marker) != self._store.id:
            raise ConfigError(
                f"the folder {self.path} has the sessions of another store than {self._store}: {marker} says so. "
                "Give that store with --store, or another folder with --sessions"
            )

    def _require_own_files(self) -> None:
        """Raise ConfigError for a folder without an identifier whose files this store does not know."""
        files = {path.name for path in self.path.glob("*.safetensors")}
        if files and not files & self._store.session_files():
            raise ConfigError(
                f"the folder {self.path} has the states of {len(files):,} sessions that the store {self._store} does "
                "not know. Give their store with --store, or another folder with --sessions"
            )


def _read(marker: Path) -> str:
    """The identifier in a marker, which another server may just be writing."""
    end = time.monotonic() + _READ_SECONDS
    while not (text := marker.read_text(encoding="utf-8").strip()) and time.monotonic() < end:
        time.sleep(0.02)
    return text


def _modified(path: Path) -> float:
    """When a file was changed; now, where it is just gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()
