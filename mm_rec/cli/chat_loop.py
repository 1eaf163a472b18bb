"""The loop of `mmrec chat` at the terminal, over a local model or a server."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from rich.console import Console

from mm_rec.data.conversations.conversation import ChatMessage
from mm_rec.errors import UserError
from mm_rec.runs.files import write_json
from mm_rec.terminal import write_raw

HELP = "/reset forgets the conversation, /save FILE writes it down, /exit ends. Ctrl-C ends a reply."
# Escape sequences could write over what stands on the terminal, and worse.
_CONTROLS = dict.fromkeys(code for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n")

Command = Callable[[list[str]], None]


class ChatBackend(Protocol):
    """A conversation with a local model or a server."""

    messages: list[ChatMessage]

    @property
    def interruptible(self) -> bool:
        """Return whether Ctrl-C may raise at any time, also within a step of the model."""

    def send(self, content: str) -> Generator[str]:
        """Send a message; yields the reply as it comes, and keeps the part of it that was taken."""

    def reset(self) -> None:
        """Forget everything but the system message."""


def chat_loop(
    conversation: ChatBackend,
    console: Console,
    commands: Mapping[str, Command] | None = None,
    more: str = "",
) -> None:
    """Read lines until the end of the input or /exit; `commands` adds slash commands, and `more` their help."""
    help_line = f"{HELP} {more}".rstrip()
    console.print(help_line, style="dim")
    while (line := _read_line(console)) is not None:
        name, *words = line.split() or [""]
        try:
            if name in (commands or {}):
                (commands or {})[name](words)
            elif name.startswith("/"):
                _command(line, conversation, console, help_line)
            elif name:
                chat_turn(line, conversation, console)
        except UserError as error:
            console.print(str(error).translate(_CONTROLS), style="red")


def _read_line(console: Console) -> str | None:
    """Return the line typed; None at the end of the conversation."""
    try:
        line = console.input("[bold]> [/bold]", markup=True).strip()
    except (EOFError, KeyboardInterrupt):
        console.print()
        return None
    except UnicodeDecodeError as error:
        raise UserError(f"what was typed is not UTF-8 ({error}). Set the terminal to UTF-8") from error
    return None if line in ("/exit", "/quit") else line


def _command(line: str, conversation: ChatBackend, console: Console, help_line: str) -> None:
    """Run a slash command."""
    name, _, rest = line.partition(" ")
    if name == "/reset":
        conversation.reset()
        console.print("The conversation is forgotten.", style="dim")
    elif name == "/save" and rest.strip():
        _save(conversation, Path(rest.strip()).expanduser(), console)
    else:
        console.print(help_line, style="dim")


def _save(conversation: ChatBackend, path: Path, console: Console) -> None:
    """Write the messages to a JSON file."""
    if path.is_dir():
        raise UserError(f"{path}: this is a folder; name a file in it")
    try:
        write_json(path, {"messages": [message.to_template() for message in conversation.messages]})
    except OSError as error:
        raise UserError(f"{path}: it cannot be written ({error.strerror})") from error
    console.print(f"Saved: {path}", style="dim")


def chat_turn(line: str, conversation: ChatBackend, console: Console) -> None:
    """Send a line and print the reply as it comes; Ctrl-C keeps what came so far."""
    written = False
    try:
        with (
            _catch_sigint(conversation.interruptible) as interrupted,
            contextlib.closing(conversation.send(line)) as reply,
        ):
            for piece in reply:
                write_raw(console, piece.translate(_CONTROLS))
                written = True
                if interrupted():
                    break
    except KeyboardInterrupt:
        pass
    except UserError:
        if written:
            console.print()
        raise
    console.print()


@contextlib.contextmanager
def _catch_sigint(at_once: bool) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed; with `at_once` the first one also raises.

    Raised within a step of a model it would leave a half-updated state.
    """
    pressed: list[int] = []

    def press(number: int, _frame: object) -> None:
        pressed.append(number)
        if at_once and len(pressed) == 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
