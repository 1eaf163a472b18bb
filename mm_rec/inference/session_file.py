"""The file in which a conversation is kept: what the model has read, as its state, and nothing of the text.

MM-Rec's has one size, however long the conversation; LLaMA's and a hybrid's grow with every token.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from mm_rec.errors import CheckpointError, DataError, TokenizerError
from mm_rec.inference.engine import Engine, Session
from mm_rec.inference.fingerprints import compute_state_fingerprint, weights_fingerprint
from mm_rec.models.adapters import adapters_of
from mm_rec.tokenizers.chat_template import known_chat_template

_ANEW = "or begin a new conversation with another --session FILE"


class SessionFile:
    """Keeps the session of one conversation, with its system message, bound to all that it was read with."""

    def __init__(
        self, path: Path, engine: Engine, tokenizer: PreTrainedTokenizerBase, digests: Mapping[str, str]
    ) -> None:
        """`digests` (of the adapters' files, by name) as `compute_state_fingerprint` has them.

        Raises TokenizerError for a chat template that is not of our layouts, DataError where no file can be written.
        """
        if known_chat_template(tokenizer) is None:
            raise TokenizerError(
                "--session: this model's chat template is not one of MM-Rec's layouts, so a conversation cannot go on "
                "without its beginning. Leave --session out"
            )
        _require_writable(path)
        self.path, self._engine, self._tokenizer = path, engine, tokenizer
        self._digests, self._weights = digests, weights_fingerprint(engine.model)

    def read(self) -> tuple[Session, str | None] | None:
        """The session and the system message that it began with; None where there is no file yet.

        Raises CheckpointError where the file is damaged or belongs to something else.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                notes: dict[str, str] = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.path}: this is no saved conversation ({error})") from error
        on_model = adapters_of(self._engine.model)
        applied = {} if on_model is None else on_model.weights
        own = self._state_fingerprint(applied)
        self._require_same(notes, own, applied)
        return self._engine.load_session(self.path, own), notes.get("system")

    def write(self, session: Session, system: str | None) -> None:
        """Keep a session whose last message is closed; raises DataError where the file cannot be written."""
        notes = {} if system is None else {"system": system}
        try:
            session.save(self.path, {**self._state_fingerprint(session.adapters), **notes})
        except (OSError, SafetensorError) as error:
            raise DataError(f"the conversation cannot be kept here ({error})", self.path) from error

    def delete(self) -> None:
        """Remove the file; raises DataError where it cannot be removed."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"the file cannot be removed ({error.strerror})", self.path) from error

    def _state_fingerprint(self, adapters: Mapping[str, float]) -> dict[str, str]:
        return compute_state_fingerprint(
            self._weights, self._tokenizer, self._engine.precision, adapters, self._digests
        )

    def _require_same(
        self, notes: Mapping[str, str], own: Mapping[str, str], applied: Mapping[str, float]
    ) -> None:
        """Raise CheckpointError that says what differs and what to do."""
        if not own.keys() <= notes.keys():
            raise CheckpointError(f"{self.path}: this is no saved conversation. Name another --session FILE")
        before, now = _named(json.loads(notes["adapters"])), _named(applied)
        same_names = " (of other weights: trained on since)" if before == now else ""
        reasons = {
            "model": "it was read by a model with other weights. Name that model",
            "template": "it was written in another chat template. Name the model with the tokenizer of then",
            "adapter": f"it was read with {before}, and this is {now}{same_names}. Give the same --adapter",
            "precision": f"it was read in {notes['precision']}, and this is {own['precision']}. "
            f"Give --precision {notes['precision']}",
        }
        for name, reason in reasons.items():
            if notes[name] != own[name]:
                raise CheckpointError(f"{self.path}: {reason}, {_ANEW}")


def _named(adapters: Mapping[str, float]) -> str:
    shown = ", ".join(f"{name}={weight:g}" for name, weight in sorted(adapters.items()))
    return f"the adapters {shown}" if shown else "no adapter"


def _require_writable(path: Path) -> None:
    """Raise DataError where a file cannot be written; the first reply would be too late to say so."""
    if path.is_dir():
        raise DataError("--session: this is a folder; name a file in it", path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise DataError(f"--session: no file can be written here ({error.strerror})", path) from error
