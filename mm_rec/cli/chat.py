"""`mmrec chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mm_rec.cli.sampling_options import (
    Adapter,
    Device,
    MaxNewTokens,
    MinP,
    ModelPath,
    Precision,
    PrecisionChoice,
    RepetitionPenalty,
    Seed,
    Temperature,
    TopK,
    TopP,
    open_engine,
    read_sampling,
    warn_of_format,
)
from mm_rec.errors import UserError

if TYPE_CHECKING:
    from mm_rec.inference.chat import ChatSession
    from mm_rec.models.adapters import Adapters

_HELP = "/reset forgets the conversation, /save FILE writes it down, /exit ends. Ctrl-C ends a reply."
_ADAPTER_HELP = (
    "/adapters lists adapters, /adapters A B=0.5 applies these alone, /adapters none the plain model."
)


def chat(
    model: ModelPath,
    system: Annotated[str | None, typer.Option(help="What the model is told before you speak.")] = None,
    max_new_tokens: MaxNewTokens = 400,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = None,
    adapter: Adapter = None,
    device: Device = "auto",
    precision: Precision = PrecisionChoice.FLOAT32,
) -> None:
    """Talk to a model. It keeps its state between turns, so each turn costs only its own tokens."""
    sampling = read_sampling(
        "mmrec chat",
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    from mm_rec.data.conversations.conversation import ChatMessage
    from mm_rec.data.conversations.rendering import prompt_text
    from mm_rec.inference.chat import ChatSession
    from mm_rec.models.adapters import adapters_of

    console = Console(soft_wrap=True, highlight=False, markup=False)
    engine, tokenizer = open_engine(model, adapter or [], device, precision, console)
    conversation = ChatSession(engine, tokenizer, sampling, system)
    adapters = adapters_of(engine.model)
    warn_of_format(adapter or [], prompt_text(tokenizer, [ChatMessage("user", "…")]), console)
    console.print(_HELP if adapters is None else f"{_HELP} {_ADAPTER_HELP}", style="dim")
    while (line := _read_line(console)) is not None:
        if line.startswith("/adapters") and adapters is not None:
            _switch(line.split()[1:], adapters, conversation, console)
        elif line and not _command(line, conversation, console):
            _turn(line, conversation, console)


def _read_line(console: Console) -> str | None:
    """What the person typed; None where the conversation is over."""
    try:
        line = console.input("[bold]> [/bold]", markup=True).strip()
    except (EOFError, KeyboardInterrupt):
        console.print()
        return None
    except UnicodeDecodeError as error:
        raise UserError(f"what was typed is not UTF-8 ({error}). Set the terminal to UTF-8") from error
    return None if line in ("/exit", "/quit") else line


def _command(line: str, conversation: ChatSession, console: Console) -> bool:
    """Do what a line with a slash asks for; False where it is a message."""
    name, _, rest = line.partition(" ")
    if name == "/reset":
        conversation.reset()
        console.print("The conversation is forgotten.", style="dim")
    elif name == "/save" and rest.strip():
        path = Path(rest.strip()).expanduser()
        try:
            conversation.save(path)
        except OSError as error:
            console.print(f"{path}: it cannot be written ({error.strerror})", style="red")
        else:
            console.print(f"Saved: {path}", style="dim")
    elif name.startswith("/"):
        console.print(_HELP, style="dim")
    else:
        return False
    return True


def _switch(wanted: list[str], adapters: Adapters, conversation: ChatSession, console: Console) -> None:
    """Apply other adapters, or show which are applied; the conversation goes on."""
    from mm_rec.models.adapted import parse_adapter

    if wanted:
        try:
            adapters.apply({} if wanted == ["none"] else dict(map(parse_adapter, wanted)))
        except UserError as error:
            console.print(str(error), style="red")
            return
        conversation.read_again()
    shown = [
        f"{name}={adapters.weights[name]:g}" if name in adapters.weights else f"({name})"
        for name in adapters.names
    ]
    console.print("  ".join(shown), style="dim")


def _turn(line: str, conversation: ChatSession, console: Console) -> None:
    """Say a line and show the reply as it comes; Ctrl-C keeps what came so far."""
    try:
        with _interruption() as interrupted, contextlib.closing(conversation.say(line)) as reply:
            for piece in reply:
                console.out(piece, end="", highlight=False)
                if interrupted():
                    break
        console.print()
    except UserError as error:
        console.print(f"{error} (/reset forgets the conversation)", style="red")


@contextlib.contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Tell whether Ctrl-C was pressed, instead of raising: raised within a step it would leave half a state."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
