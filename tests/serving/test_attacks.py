"""Attacks on a server with little memory and few descriptors: what each gets, and what it takes from everybody else.

Bounds are on memory, log and answers; what /health and other clients notice in time is shown by bench/attacks.py.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serving.attack_requests import ATTACKS, GONE, Attack, Target
from small_models import build_small
from transformers import PreTrainedTokenizerBase
from waiting import LONGEST, until

from mm_rec.models.loading import save_model

if sys.platform != "linux":
    pytest.skip("the memory of another process is read as Linux tells it", allow_module_level=True)

MIB = 2**20
SPACE, DESCRIPTORS = 3 * 2**30, 256  # bytes of addresses beside what the server has at its start; files
MOST_MEMORY, MOST_LOG = 300 * MIB, 20_000
# What each attack gets; GONE: nothing while it waits.
EXPECTED: dict[str, set[int | str]] = {
    "a pattern of 30 KB": {400},
    "a pattern of 80 KB": {400},
    "character classes of 10,000": {200},
    "three of ^.{3000}$": {200},
    "^(a{1000}){1000}$": {400},
    "300 silent connections": {GONE},
    "headers byte by byte": {GONE},
    "8 MB of invalid items": {400},
    "1,000 tools": {400},
    "20 times 8 MB of metadata": {400},
    "an embedding of 77,824 tokens": {400},
    "arguments nested 600 deep": {400},
    "100,000 brackets": {400},
    "nine responses, a locked store": {503, GONE},
}


class Attacked:
    """`mmrec serve` in a process of its own, with few descriptors and a bound on its memory."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log.txt"
        options = ["llama", "--port", "0", "--timeout", "5", "--max-prompt", "4096", "--max-tokens", "4096"]
        command = [sys.executable, "-c", "from mm_rec.cli.main import main; main()", "serve", *options]
        files = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, files[1]))  # which it inherits
        try:
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(command, cwd=folder, stderr=log)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, files)
        until(lambda: "Ctrl-C" in self.log.read_text("utf-8"), lambda: self.process.poll() is None)
        self.url = re.findall(r"(http://\S+)/v1", self.log.read_text("utf-8"))[0]
        port = int(self.url.rpartition(":")[2])
        self.target = Target("127.0.0.1", port, "llama", folder / "serving" / "store.db", 9.0)
        most = self.memory("VmSize") + SPACE
        resource.prlimit(self.process.pid, resource.RLIMIT_AS, (most, most))

    def memory(self, name: str) -> int:
        """VmRSS, its peak VmHWM, or VmSize, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(status.partition(f"{name}:")[2].split()[0]) * 1024

    def require_at_work(self) -> None:
        """Show that it answers everybody else as ever."""
        assert httpx.get(f"{self.url}/health", timeout=LONGEST).status_code == 200
        body = {"model": "llama", "prompt": "Once", "max_tokens": 2, "temperature": 0}
        answer = httpx.post(f"{self.url}/v1/completions", json=body, timeout=LONGEST)
        assert answer.status_code == 200, answer.text


@pytest.fixture(scope="module")
def attacked(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Attacked]:
    folder = tmp_path_factory.mktemp("attacked")
    save_model(build_small("llama", vocabulary=len(chat_tokenizer)).float(), chat_tokenizer, folder / "llama")
    one = Attacked(folder)
    one.require_at_work()
    yield one
    one.process.kill()
    one.process.wait()


def test_each_attack_has_a_row() -> None:
    assert set(EXPECTED) == {attack.name for attack in ATTACKS}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_takes_little_and_the_server_goes_on(attacked: Attacked, attack: Attack) -> None:
    Path(f"/proc/{attacked.process.pid}/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before, said = attacked.memory("VmRSS"), attacked.log.stat().st_size
    got = set(attack.send(attacked.target))
    log = attacked.log.read_text("utf-8")[said:]
    assert got <= EXPECTED[attack.name] and got, log
    assert attacked.memory("VmHWM") - before < MOST_MEMORY
    until(
        lambda: httpx.get(f"{attacked.url}/health", timeout=LONGEST).status_code == 200
    )  # the store is free again
    attacked.require_at_work()
    assert len(log) < MOST_LOG and "Traceback" not in log
