"""Keep sessions by the text that they have read, so that a longer text reads only what is new.

Kept are sessions with the text that they have read. A text is looked up by the longest kept one that it begins with:
what a client sends again at every turn of a conversation is thus read once. MM-Rec's state can only be gone on with as
it is, so a text is kept where a turn ends: after the prompt and after the reply. It must end where a tokenizer cuts
whatever follows, at a special token, or the tokens would not be those of the whole text.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock

from mm_rec.inference.engine import Session


class PrefixCache:
    """Kept sessions, at most `max_bytes` of state; those not used for longest go first.

    `key` says what a session belongs to: model, adapters, layout. Sessions of another key are never found.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._sessions: OrderedDict[tuple[Hashable, str], Session] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def insert(self, key: Hashable, text: str, session: Session) -> None:
        """Keep a session that has read this text; it belongs to the prefixes from then on."""
        with self._lock:
            self._evict((key, text))
            size = session.state.nbytes
            if not text or size > self.max_bytes:
                return
            self._sessions[key, text] = session
            self.bytes += size
            while self.bytes > self.max_bytes:
                self._evict(next(iter(self._sessions)))

    def match_prefix(self, key: Hashable, text: str) -> tuple[str, Session] | None:
        """The longest kept text that this one begins with and goes beyond, and a session that has read it, a copy."""
        with self._lock:
            known = [
                (length, read)
                for kept_key, read in self._sessions
                if kept_key == key and (length := len(read)) < len(text) and text.startswith(read)
            ]
            if not known:
                return None
            read = max(known)[1]
            self._sessions.move_to_end((key, read))
            session = self._sessions[key, read]
        return read, session.fork()

    def clear(self) -> None:
        """Let go of all that is kept."""
        with self._lock:
            self._sessions.clear()
            self.bytes = 0

    def _evict(self, name: tuple[Hashable, str]) -> None:
        session = self._sessions.pop(name, None)
        if session is not None:
            self.bytes -= session.state.nbytes
