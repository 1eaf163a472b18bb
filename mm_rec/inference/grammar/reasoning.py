"""Track whether a text is within reasoning, and the tokens that end it."""

from __future__ import annotations

from collections.abc import Callable


class ReasoningState:
    """A text that is within reasoning, or may begin with some, which a grammar's symbols do not show."""

    def __init__(
        self, begin: str, end: str, encode: Callable[[str], list[int]], is_open: bool, text: str = ""
    ) -> None:
        """`text`: what was written of the beginning, or, where it `is_open`, the last of what was thought."""
        self._begin, self._end, self._encode = begin, end, encode
        self._is_open, self._text = is_open, text

    def exit_tokens(self) -> list[int]:
        """Tokens after which reasoning is over; where it has not begun, with its beginning."""
        missing = "" if self._is_open else self._begin[len(self._text) :]
        return self._encode(missing + self._end)

    def after(self, text: str) -> ReasoningState | None:
        """The same after more text; None where no reasoning can come any more."""
        whole, is_open = self._text + text, self._is_open
        if not is_open and whole.startswith(self._begin):
            whole, is_open = whole.removeprefix(self._begin), True
        if is_open:
            return None if self._end in whole else self._with(True, whole[-len(self._end) :])
        return self._with(False, whole) if self._begin.startswith(whole) else None

    def _with(self, is_open: bool, text: str) -> ReasoningState:
        return ReasoningState(self._begin, self._end, self._encode, is_open, text)
