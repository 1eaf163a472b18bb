"""Stores in both databases: a new SQLite file, and a real PostgreSQL server of the tests' own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from playwright.sync_api import expect
from serving.server import Server, small_model
from small_models import tokenizer_folder  # noqa: F401
from transformers import PreTrainedTokenizerBase
from waiting import LONGEST, until

from mm_rec.inference.scheduler import Scheduler
from mm_rec.inference.token_stream import POLL_SECONDS
from mm_rec.store.store import Store
from mm_rec.tokenizers.chat_template import prepare_for_chat
from mm_rec.tokenizers.loading import load_tokenizer

START = "postgresql+psycopg://postgres@/postgres?host="  # followed by the folder of its socket


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server on a socket in a temporary folder; skipped where it is not installed."""
    programs = _programs()
    with tempfile.TemporaryDirectory(prefix="mmrec-pg-") as folder:  # pytest's own are closed to other users
        user = _other_user(Path(folder))
        make = [f"{programs}/initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        subprocess.run(
            [*make, "--no-locale", "--no-sync"], cwd=folder, check=True, stdout=subprocess.DEVNULL, user=user
        )
        serve = [f"{programs}/postgres", "-D", "data", "-k", folder, "-c", "listen_addresses="]
        with (Path(folder) / "log").open("wb") as log:
            server = subprocess.Popen([*serve, "-c", "fsync=off"], cwd=folder, stderr=log, user=user)
        try:
            _wait_until_ready(folder, server)
            yield START + folder
        finally:
            server.send_signal(signal.SIGINT)  # its fast way to stop: connections are closed, not waited for
            server.wait(30)


def _programs() -> Path:
    """The folder of PostgreSQL's programs, which Debian keeps out of the path."""
    for program in (*Path("/usr/lib/postgresql").glob("*/bin/postgres"), shutil.which("postgres")):
        if program is not None:
            return Path(program).parent
    pytest.skip("there is no PostgreSQL server; on Debian and Ubuntu: apt install postgresql")


def _other_user(folder: Path) -> int | None:
    """Return the user id to run PostgreSQL as, which refuses root; None for the user of the tests."""
    if os.getuid() != 0:
        return None
    try:
        user = pwd.getpwnam("postgres").pw_uid
    except KeyError:
        pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres to run it")
    os.chown(folder, user, -1)
    return user


def _wait_until_ready(folder: str, server: subprocess.Popen[bytes]) -> None:
    def answers() -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(f"host={folder} user=postgres dbname=postgres").close()
            return True
        return False

    def starting() -> bool:
        assert server.poll() is None, (Path(folder) / "log").read_text()
        return True

    until(answers, starting)


@pytest.fixture(scope="session", autouse=True)
def _patience() -> None:
    """Clients and browsers wait a minute and more for what a busy machine takes long for: their own limits are 5 s."""
    usual = httpx._config.DEFAULT_TIMEOUT_CONFIG  # has no other way to be set for all
    usual.connect = usual.read = usual.write = usual.pool = LONGEST
    expect.set_options(timeout=60_000)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/kept/store.db"
        return
    server: str = request.getfixturevalue("postgresql")
    yield server
    folder = server.removeprefix(START)
    with psycopg.connect(f"host={folder} user=postgres dbname=postgres", autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")


@pytest.fixture
def opened() -> Iterator[Callable[[str], Store]]:
    """Open a store that is closed at the end of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda url: stack.enter_context(contextlib.closing(Store(url)))


@pytest.fixture
def store(url: str, opened: Callable[[str], Store]) -> Store:
    """An empty store in each kind of database."""
    return opened(url)


@pytest.fixture(scope="session")
def chat_tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerBase:  # noqa: F811
    """The small tokenizer with the default layout of conversations."""
    tokenizer = load_tokenizer(tokenizer_folder)
    prepare_for_chat(tokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def server(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server of two small random models, "mmrec" and "llama" (of 512 tokens of context)."""
    scheduler = Scheduler()
    models = [
        small_model(family, chat_tokenizer, context=512, scheduler=scheduler) for family in ("mmrec", "llama")
    ]
    running = Server(models, tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


@pytest.fixture
def unhurried(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token takes as long as the server waits before it sends on what came: a whole answer is never one piece."""
    scheduler = server.context.registry.models[0].scheduler
    write = scheduler.step

    def slowly() -> None:
        time.sleep(POLL_SECONDS)
        write()

    monkeypatch.setattr(scheduler, "step", slowly)
