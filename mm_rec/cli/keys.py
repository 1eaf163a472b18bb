"""`mmrec keys`: who may use the server, and how much."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from mm_rec.store.store import Store
    from mm_rec.store.tables import ApiKey

app = typer.Typer(no_args_is_help=True)

DEFAULT_STORE = "sqlite:///serving/store.db"
StoreUrl = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="URL",
        help="The server's database: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE.",
    ),
]

_UNITS = {"m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}  # seconds


@app.callback()
def _group() -> None:
    """Make, list and revoke the API keys of the server."""


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, or what for; only people read it.")],
    expires_in: Annotated[
        str | None, typer.Option(metavar="TIME", help="When it ends: 90m, 12h, 30d or 8w from now.")
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The most requests.")
    ] = None,
    tokens_per_day: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="The most tokens, read and written, in a day (UTC)."),
    ] = None,
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """Make a key and print it: this once, because only a hash of it is kept."""
    from mm_rec.serving.api_keys import create_key

    seconds = None if expires_in is None else _seconds(expires_in)
    with _open_store(store) as opened:
        text, key = create_key(
            opened,
            name,
            expires_in=seconds,
            requests_per_minute=requests_per_minute,
            tokens_per_day=tokens_per_day,
        )
        place = str(opened)
    typer.echo(text)  # alone on standard output, for scripts
    _note(
        f"That is the key of {name} ({key.id}, in {place}). Keep it now: it cannot be shown again.\n"
        "Programs written for OpenAI take it as OPENAI_API_KEY; others send the header Authorization: Bearer KEY.\n"
        f"To end it: mmrec keys revoke {key.id}"
    )


@app.command("list")
def list_(store: StoreUrl = DEFAULT_STORE) -> None:
    """List all keys, newest first, with their limits and what they used today."""
    with _open_store(store) as opened:
        from mm_rec.store.store import today

        rows = [(key, opened.usage(key.id, today()).tokens) for key in opened.list_keys()]
        place = str(opened)
    if not rows:
        _note(f"there are no keys in {place}; mmrec keys create NAME makes one")
        return
    table = Table("id", "name", "key", "state", "created", "last used", box=None, padding=(0, 2, 0, 0))
    for column in ("requests a minute", "tokens a day", "today"):
        table.add_column(column, justify="right")
    for key, tokens in rows:
        table.add_row(
            key.id,
            key.name,
            f"{key.prefix}…",
            _state(key),
            _time(key.created),
            _time(key.last_used),
            _limit(key.requests_per_minute),
            _limit(key.tokens_per_day),
            f"{tokens:,}",
        )
    console = Console(markup=False, highlight=False)
    console.width = max(console.width, 190)  # an id cut short would be of no use
    console.print(table)


@app.command()
def revoke(
    id: Annotated[str, typer.Argument(metavar="ID", help="As `mmrec keys list` shows it: key_…")],
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """End a key at once and for good."""
    from mm_rec.errors import ConfigError

    with _open_store(store) as opened:
        key = opened.revoke_key(id)
        if key is None:
            raise ConfigError(f"there is no key {id!r} in {opened}; mmrec keys list shows the ids")
    _note(f"{key.name} ({key.id}) is revoked since {_time(key.revoked)}")


@contextlib.contextmanager
def _open_store(url: str) -> Iterator[Store]:
    from mm_rec.store.store import Store

    with contextlib.closing(Store(url)) as store:
        yield store


def _seconds(text: str) -> int:
    from mm_rec.errors import ConfigError

    found = re.fullmatch(r"([0-9]{1,9})([mhdw])", text.strip())
    if not found:
        raise ConfigError(f"--expires-in {text!r} is no time: write it like 90m, 12h, 30d or 8w")
    return int(found[1]) * _UNITS[found[2]]


def _state(key: ApiKey) -> str:
    from mm_rec.serving.api_keys import is_active

    if key.revoked is not None:
        return f"revoked {_time(key.revoked)}"
    if key.expires is None:
        return "in force"
    return f"{'in force until' if is_active(key) else 'expired'} {_time(key.expires)}"


def _time(seconds: int | None) -> str:
    if seconds is None:
        return "never"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _limit(value: int | None) -> str:
    return "no limit" if value is None else f"{value:,}"


def _note(text: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(text)
