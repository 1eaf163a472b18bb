"""`mmrec serve`: models behind OpenAI's HTTP API."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mm_rec.cli.keys import DEFAULT_STORE, StoreUrl
from mm_rec.cli.sampling_options import Adapter, Device, Precision, PrecisionChoice

if TYPE_CHECKING:
    from mm_rec.serving.access import AccessPolicy
    from mm_rec.store.store import Store

_MIB = 2**20
_LOCAL = ("127.0.0.1", "::1", "localhost")


class LogLevel(StrEnum):
    """From which level on the log says things: Python's own levels."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a line of the log is written."""

    TEXT = "text"
    JSON = "json"


class WhenFull(StrEnum):
    """What to do where the context is full."""

    REFUSE = "refuse"
    DROP = "drop"


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]MODEL…",
            help="What to serve: model folders or runs, under the folder's name or another. "
            "Without any, what `mmrec quickstart` made.",
            show_default=False,
        ),
    ] = None,
    adapter: Adapter = None,
    alias: Annotated[
        list[str] | None, typer.Option(metavar="ALIAS=NAME", help="A further name of a model.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    keys: Annotated[
        bool | None,
        typer.Option(
            "--keys/--no-keys",
            help="Answer only who has a key of `mmrec keys`; that is the rule at any address but this machine's own.",
            show_default=False,
        ),
    ] = None,
    store: StoreUrl = DEFAULT_STORE,
    sessions: Annotated[Path, typer.Option(help="The folder of the sessions' states.")] = Path(
        "serving/sessions"
    ),
    most_active: Annotated[int, typer.Option(min=1, max=64, help="Answers written at once.")] = 8,
    most_waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait; others get 429.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")] = 8_192,
    max_prompt: Annotated[int, typer.Option(min=1, help="The most tokens of a request.")] = 262_144,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that an answer may take.")] = 600,
    when_full: Annotated[
        WhenFull,
        typer.Option(
            help="Where a LLaMA's context is full: refuse, or drop the oldest turns. MM-Rec's is never full."
        ),
    ] = WhenFull.REFUSE,
    keep_memory: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="MIB",
            help="Memory for what was read and may be gone on with: so much for each model, and for sessions.",
        ),
    ] = 512,
    max_connections: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Connections at once; by default 1,024, or what `ulimit -n` leaves room for.",
            show_default=False,
        ),
    ] = None,
    max_per_address: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Connections of one address; by default half of all. Behind a proxy give as many as it opens.",
            show_default=False,
        ),
    ] = None,
    log_level: Annotated[
        LogLevel,
        typer.Option(
            help="What is logged to stderr: info has a line for each request, debug those of /health and /metrics too."
        ),
    ] = LogLevel.INFO,
    log_format: Annotated[
        LogFormat, typer.Option(help="Lines of text, or one JSON object each.")
    ] = LogFormat.TEXT,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Log the bodies of requests too, up to 64 KiB of each.")
    ] = False,
    keep_responses: Annotated[
        int, typer.Option(min=1, help="The most responses kept of a key; the oldest go first.")
    ] = 10_000,
    keep_sessions: Annotated[int, typer.Option(min=1, help="The most sessions kept of a key.")] = 1_000,
    keep_disk: Annotated[
        int, typer.Option(min=1, metavar="MIB", help="Disk for a key's responses, and for its sessions.")
    ] = 4_096,
    keep_days: Annotated[
        int, typer.Option(min=1, help="Days that responses are kept, and sessions after their last turn.")
    ] = 30,
    share_prefixes: Annotated[
        bool,
        typer.Option(
            "--share-prefixes",
            help="What was read for one key is not read again for another. A key can then guess what another wrote.",
        ),
    ] = False,
    device: Device = "auto",
    precision: Precision = PrecisionChoice.AUTO,
) -> None:
    """Serve models over OpenAI's API, with a chat page at /."""
    from mm_rec.inference.manager import ModelManager
    from mm_rec.inference.scheduler import Scheduler
    from mm_rec.serving.app import create_app
    from mm_rec.serving.connections import resolve_limits
    from mm_rec.serving.context import RequestLimits, ServerContext
    from mm_rec.serving.log_format import announce, configure_logging
    from mm_rec.serving.model_registry import ModelRegistry
    from mm_rec.serving.server import GRACE_SECONDS, run
    from mm_rec.serving.sessions import SessionManager
    from mm_rec.store.retention import Retention
    from mm_rec.store.store import Store

    as_json = log_format is LogFormat.JSON
    notes = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    say = announce if as_json else notes.print  # where a program reads the log, every line of it is JSON
    connections = resolve_limits(max_connections, max_per_address)
    opened = Store(store, Retention(keep_responses, keep_sessions, keep_disk * _MIB, keep_days))
    policy = _access_policy(host, keys, opened, sessions.with_name("uploads"))
    manager = ModelManager(
        Scheduler(most_active, most_waiting), device=device, precision=precision.value,
        prefix_cache_bytes=keep_memory * _MIB,
    )  # fmt: skip
    notices = []
    for text in models or [_quickstart()]:
        name, given, path = text.rpartition("=")
        notices.append(manager.load(name if given else Path(path).resolve().name, path, adapter or []))
    registry = ModelRegistry(manager, _aliases(alias or []))
    limits = RequestLimits(max_tokens=max_tokens, max_prompt_tokens=max_prompt, timeout_seconds=timeout)
    context = ServerContext(
        registry,
        opened,
        SessionManager(opened, sessions, keep_memory * _MIB),
        limits,
        truncate=when_full is WhenFull.DROP,
        share_prefixes=share_prefixes,
    )
    names = ", ".join([*registry.variants, *registry.aliases])

    who = "" if host in _LOCAL else " to EVERYBODY who can reach this machine (--no-keys)"
    if policy.require_keys:
        who = " to those who have a key (mmrec keys)"

    def on_listening(url: str) -> None:
        configure_logging(log_level.value, as_json=as_json)  # a mistake before has no need of it
        for notice in filter(None, notices):
            say(f"note: {notice}")
        say(
            f"Serving {names}{who}\n  chat page  {url}/\n  API        {url}/v1\n"
            f"  kept       {opened.retention}\nCtrl-C ends it."
        )

    def on_stopping(answers: int) -> None:
        what = "an answer is" if answers == 1 else f"{answers} answers are"
        say(f"Stopping: {what} being finished, for {GRACE_SECONDS:.0f} seconds at most. Ctrl-C ends now.")

    app = create_app(context, policy, log_prompts=log_prompts)
    run(app, host, port, connections, on_listening, on_stopping)


def _access_policy(host: str, keys: bool | None, store: Store, upload_folder: Path) -> AccessPolicy:
    """Return the access policy; raises ConfigError where it would let nobody in."""
    from mm_rec.errors import ConfigError
    from mm_rec.serving.access import LOCAL_HOSTS, AccessPolicy
    from mm_rec.serving.api_keys import is_active

    wanted = host not in _LOCAL if keys is None else keys
    if wanted and not any(is_active(key) for key in store.list_keys()):
        raise ConfigError(
            f"{host} can be reached from other machines, so the server answers only who has a key, and there is none "
            f"in {store}. Make one: mmrec keys create NAME. Or let everybody in: --no-keys"
            if keys is None
            else f"--keys: there is no key in {store}. Make one: mmrec keys create NAME"
        )
    return AccessPolicy(
        require_keys=wanted,
        allowed_hosts=LOCAL_HOSTS if host in _LOCAL and not wanted else None,
        upload_folder=upload_folder,
    )


def _quickstart() -> str:
    from mm_rec.cli.quickstart import FOLDER
    from mm_rec.errors import ConfigError

    model = FOLDER / "sft"
    if not model.exists():
        raise ConfigError(
            f"there is no {model} here. Make it in a few minutes: mmrec quickstart. Or name a model: mmrec serve MODEL"
        )
    return f"{FOLDER}={model}"


def _aliases(texts: list[str]) -> dict[str, str]:
    from mm_rec.errors import ConfigError

    aliases = {}
    for text in texts:
        alias, given, name = text.partition("=")
        if not (alias and given and name):
            raise ConfigError(f"--alias {text}: write it ALIAS=NAME")
        aliases[alias] = name
    return aliases
