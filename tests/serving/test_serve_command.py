"""`mmrec serve`, as a person and as a program meet it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import typer
from small_models import build_small
from transformers import PreTrainedTokenizerBase
from typer.main import get_command
from typer.testing import CliRunner
from waiting import LONGEST

from mm_rec.cli import serve
from mm_rec.errors import CheckpointError, ConfigError
from mm_rec.models.loading import save_model
from mm_rec.serving.api_keys import create_key
from mm_rec.store.store import Store

HI = {"model": "mm-rec-100m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
app = typer.Typer(add_completion=False)
app.command()(serve.serve)


@pytest.fixture
def model(chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    folder = tmp_path / "quickstart" / "sft"
    save_model(build_small("mmrec", vocabulary=len(chat_tokenizer)).float(), chat_tokenizer, folder)
    return folder


class Served:
    """The command in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = [
            sys.executable,
            "-c",
            "from mm_rec.cli.main import main; main()",
            "serve",
            "--port",
            "0",
            *arguments,
        ]
        self.process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.said = ""
        for line in self.process.stderr:
            self.said += line
            if "Ctrl-C" in line:
                break
        self.url = re.findall(r"(http://\S+)/v1", self.said)[0]

    def end(self, number: int) -> str:
        """Send a signal; returns what was said until the end."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=LONGEST)
        return said

    def close(self) -> None:
        """Make sure that it is over."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def quickstart(model: Path, tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.close()


def test_without_arguments_it_serves_what_quickstart_made_and_ends_cleanly(
    quickstart: Served, tmp_path: Path
) -> None:
    assert "quickstart" in quickstart.said and "mm-rec-100m" in quickstart.said
    assert "10,000 responses and 1,000 sessions, 4,096 MiB of either, for 30 days" in quickstart.said
    assert quickstart.url.startswith("http://127.0.0.1:")
    answer = httpx.post(f"{quickstart.url}/v1/chat/completions", json=HI, timeout=LONGEST)
    assert answer.status_code == 200 and answer.json()["model"] == "mm-rec-100m"
    listed = httpx.get(f"{quickstart.url}/v1/models").json()["data"]
    assert [(row["id"], row["root"]) for row in listed] == [
        ("quickstart", "quickstart"), ("mm-rec-100m", "quickstart"),
    ]  # fmt: skip
    long = {**HI, "max_tokens": 60, "stream": True}
    with httpx.stream("POST", f"{quickstart.url}/v1/chat/completions", json=long, timeout=LONGEST) as stream:
        lines = stream.iter_lines()
        next(lines)
        quickstart.process.send_signal(signal.SIGINT)
        assert [line for line in lines if line][-1] == "data: [DONE]"  # what was being written is finished
    assert quickstart.process.wait(LONGEST) == 128 + signal.SIGINT
    assert (tmp_path / "serving" / "store.db").stat().st_mode & 0o077 == 0


def test_sigterm_ends_it(quickstart: Served) -> None:
    said = quickstart.end(signal.SIGTERM)
    assert quickstart.process.returncode in (0, -signal.SIGTERM) and "Traceback" not in said


def test_ctrl_c_says_what_it_waits_for_and_a_second_one_ends_at_once(
    quickstart: Served, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    assert quickstart.process.stderr is not None
    never = {str(chat_tokenizer.eos_token_id): -100}
    endless = {**HI, "max_tokens": 8_192, "stream": True, "logit_bias": never}
    with httpx.stream(
        "POST", f"{quickstart.url}/v1/chat/completions", json=endless, timeout=LONGEST
    ) as stream:
        lines = stream.iter_lines()
        next(lines)
        quickstart.process.send_signal(signal.SIGINT)
        assert "an answer is being finished" in quickstart.process.stderr.readline()
        quickstart.process.send_signal(signal.SIGINT)
        assert '"code":"shutting_down"' in [line for line in lines if line][-1]
    _, said = quickstart.process.communicate(timeout=LONGEST)
    assert quickstart.process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in said


def refused(tmp_path: Path, *arguments: object) -> str:
    """Return the error of the command where it does not serve."""
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    finally:
        os.chdir(before)
    assert isinstance(result.exception, ConfigError | CheckpointError), result.output
    return str(result.exception)


def test_mistakes_are_told_with_what_to_do(model: Path, tmp_path: Path) -> None:
    assert "mmrec keys create" in refused(tmp_path, model, "--host", "0.0.0.0")
    assert "--no-keys" in refused(tmp_path, model, "--host", "0.0.0.0")
    assert "mmrec keys create" in refused(tmp_path, model, "--keys")
    assert "no model" in refused(tmp_path, tmp_path / "nothing")
    assert "ALIAS=NAME" in refused(tmp_path, model, "--alias", "gpt-4")
    assert "there is no model 'x'" in refused(tmp_path, model, "--alias", "gpt-4=x")
    assert "two models" in refused(tmp_path, model, model)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = refused(tmp_path, model, "--port", taken.getsockname()[1])
        assert "something listens" in said and "--port" in said
    assert "no address of this machine" in refused(tmp_path, model, "--host", "192.0.2.1", "--no-keys")
    said = refused(tmp_path, model, "--store", f"sqlite:///{tmp_path}/other.db")
    assert "has the sessions of another store" in said and "--sessions" in said
    (tmp_path / "file").touch()
    said = refused(tmp_path, model, "--sessions", tmp_path / "file")
    assert "--sessions" in said and "cannot be kept there" in said


def test_nothing_to_serve_says_how_to_make_it(tmp_path: Path) -> None:
    said = refused(tmp_path)
    assert "mmrec quickstart" in said and "mmrec serve MODEL" in said


def test_another_address_answers_who_has_a_key(model: Path, tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/serving/store.db")
    text, _ = create_key(store, "mine")
    store.close()
    served = Served(tmp_path, f"mine={model}", "--alias", "gpt-4=mine", "--host", "0.0.0.0")
    try:
        assert "to those who have a key" in served.said
        url = served.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/v1/models").status_code == 401
        listed = httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {text}"}).json()["data"]
        assert [row["id"] for row in listed] == ["mine", "mm-rec-100m", "gpt-4"]
        assert "being finished" not in served.end(signal.SIGTERM)  # nobody was there to wait for
    finally:
        served.close()


def test_start_and_stop_are_said_at_every_level_and_in_json(
    model: Path, tmp_path: Path, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    served = Served(tmp_path, "--log-format", "json", "--log-level", "error")
    try:
        never = {str(chat_tokenizer.eos_token_id): -100}
        endless = {**HI, "max_tokens": 8_192, "stream": True, "logit_bias": never}
        url = f"{served.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=endless, timeout=LONGEST) as stream:
            lines = stream.iter_lines()
            next(lines)
            served.process.send_signal(signal.SIGINT)
            assert served.process.stderr is not None
            stopping = served.process.stderr.readline()
        said = [json.loads(line) for line in [*served.said.splitlines(), stopping]]
    finally:
        served.close()
    assert all(line["level"] == "info" for line in said)
    assert served.url in said[-2]["message"] and "an answer is being finished" in said[-1]["message"]


def test_every_option_can_be_read_in_80_columns() -> None:
    shown = CliRunner(env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).invoke(app, ["--help"]).output
    names = [name for one in get_command(app).params for name in one.opts if name.startswith("--")]
    assert "--max-per-address" in names
    assert [name for name in names if name not in shown] == []
