"""`mmrec chat`: a conversation in the terminal, with a model here or with a server."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mm_rec.cli.chat_loop import chat_loop
from mm_rec.cli.sampling_options import (
    Adapter,
    Device,
    MaxNewTokens,
    MinP,
    Precision,
    PrecisionChoice,
    RepetitionPenalty,
    Seed,
    Temperature,
    TopK,
    TopP,
    read_sampling,
    show_notice,
    warn_prompt_format,
)
from mm_rec.errors import ConfigError, UserError

if TYPE_CHECKING:
    from mm_rec.inference.chat_session import ChatSession
    from mm_rec.inference.sampler import SamplingParams
    from mm_rec.models.adapters import Adapters

_ADAPTER_HELP = (
    "/adapters lists adapters, /adapters A B=0.5 applies these alone, /adapters none the plain model."
)
_NOT_WITH_URL = {
    "adapter": "the server has its own adapters; MODEL names one there",
    "device": "the server chooses where its models run",
    "precision": "the server chooses the numbers of its models",
    "session": "the model's state stays with the server, which gets the whole conversation with every turn",
}
_EXTRA_PARAMS = ("top_k", "min_p", "repetition_penalty")  # what OpenAI's API has no fields for


def chat(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A model folder, a run, a .pt file, or owner/name of a hub. With --url a name there; "
            "without one, the first that the server lists.",
            show_default=False,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="An OpenAI-compatible server to talk to, such as http://127.0.0.1:8000/v1. "
            "OPENAI_API_KEY holds the key, where it needs one.",
            show_default=False,
        ),
    ] = None,
    session: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep what the model has read in this file, and go on from there at the next start.",
            show_default=False,
        ),
    ] = None,
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
    precision: Precision = PrecisionChoice.AUTO,
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
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if url is not None:
        _chat_with_server(url, model, sampling, system, _given_options(ctx), console)
    elif model is not None:
        _chat_with_model(model, sampling, system, session, adapter or [], device, precision, console)
    else:
        raise ConfigError(
            "name a model (mmrec chat quickstart/sft), or a server that has one (mmrec chat --url "
            "http://127.0.0.1:8000/v1)"
        )


def _given_options(ctx: typer.Context) -> set[str]:
    """Return the options given on the command line, whatever their values."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _chat_with_server(
    url: str, model: str | None, sampling: SamplingParams, system: str | None, given: Collection[str],
    console: Console,
) -> None:  # fmt: skip
    """Chat with a model of a server."""
    from mm_rec.inference.remote_chat import RemoteChat

    for name, why in _NOT_WITH_URL.items():
        if name in given:
            raise ConfigError(f"--{name} cannot be used with --url: {why}. Leave it out")
    extra = {name: getattr(sampling, name) for name in _EXTRA_PARAMS if name in given}
    with contextlib.closing(RemoteChat(url, model, sampling, system, extra)) as conversation:
        console.print(f"{conversation.model} at {url}", style="dim")
        chat_loop(conversation, console)


def _chat_with_model(
    path: str, sampling: SamplingParams, system: str | None, session: Path | None, wanted: list[str], device: str,
    precision: PrecisionChoice, console: Console,
) -> None:  # fmt: skip
    """Chat with a model on this machine."""
    from mm_rec.data.conversations.conversation import ChatMessage
    from mm_rec.data.conversations.rendering import prompt_text
    from mm_rec.inference.chat_session import ChatSession
    from mm_rec.inference.manager import open_model
    from mm_rec.inference.session_file import SessionFile
    from mm_rec.models.adapters import adapters_of

    loaded = open_model(path, wanted, device, precision.value)
    show_notice(loaded.notice, console)
    engine, tokenizer = loaded.engine, loaded.tokenizer
    file = None
    if session is not None:
        file = SessionFile(session, engine, tokenizer, loaded.adapter_digests)
    conversation = ChatSession(engine, tokenizer, sampling, system, file)
    warn_prompt_format(wanted, prompt_text(tokenizer, [ChatMessage("user", "…")]), console)
    if session is not None:
        console.print(_describe_session_file(session, conversation), style="dim")
    adapters = adapters_of(engine.model)
    if adapters is None:
        chat_loop(conversation, console)
    else:
        switch = {"/adapters": lambda words: _switch_adapters(words, adapters, conversation, console)}
        chat_loop(conversation, console, switch, _ADAPTER_HELP)


def _describe_session_file(path: Path, conversation: ChatSession) -> str:
    """Describe the session file: the tokens it holds, and its size."""
    growth = conversation.session.state.bytes_per_token
    size = (
        f"it grows by {growth:,} bytes with each token" if growth else "it keeps one size, whatever is said"
    )
    if not conversation.restored_tokens:
        return f"{path}: a new conversation is kept here; {size}."
    held = f"{conversation.restored_tokens:,} tokens, {path.stat().st_size / 1e6:,.2f} MB"
    return (
        f"{path}: the conversation goes on after {held}; {size}. Its text is not kept: /save has what is said "
        "from now on."
    )


def _switch_adapters(
    wanted: list[str], adapters: Adapters, conversation: ChatSession, console: Console
) -> None:
    """Apply other adapters, or show which are applied; the conversation goes on."""
    from mm_rec.models.loading import parse_adapter

    if wanted and conversation.restored_tokens:
        raise UserError(
            "other adapters would have to read the conversation anew, and the text of what was said before this start "
            "is not kept. /reset forgets it"
        )
    if wanted:
        adapters.apply({} if wanted == ["none"] else dict(map(parse_adapter, wanted)))
        conversation.invalidate_state()
    shown = [
        f"{name}={adapters.weights[name]:g}" if name in adapters.weights else f"({name})"
        for name in adapters.names
    ]
    console.print("  ".join(shown), style="dim")
