"""The server under attack: what everybody else notices while each attack runs.

    python bench/attacks.py [--quick] [--only PATTERN] [--family mmrec] [--memory 4096]

`mmrec serve --timeout 5` runs in a process of its own with 256 file descriptors and a small model of random weights.
One client asks for `/health` every 20 ms, each time over a new connection, and one streams tokens; both are processes
of their own. Each attack (tests/serving/attack_requests.py) is sent once. A line of the table says, for the time from
its first byte to its last answer, or for two seconds where that is shorter: what the attacker got; how long `/health`
took, from when it was due, so that what came late because the one before was late counts too; the other client's
tokens/s relative to those before; by how much the peak of resident memory grew; and how many bytes the log. The
server may have `--memory` MiB of addresses more than after its start, then it gets no more.

Goals: `/health` within 100 ms at p99, the other client's tokens at least at half their rate, memory under 300 MiB. The
exit status is 1 where one is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import http.client
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import protocol
from serving import FAMILIES, Server, make_model

sys.path.append(str(Path(__file__).parents[1] / "tests" / "serving"))
from attack_requests import ATTACKS, Attack, Target

HEALTH_SECONDS, SHARE, MEMORY_MB = 0.1, 0.5, 300  # the goals
EVERY, BEFORE, LEAST = (
    0.02,
    2.0,
    2.0,
)  # seconds: between two questions, before an attack, of the time looked at
DESCRIPTORS = 256


# The two clients that are nobody's enemy: lines of "when it was due" and "how long it took", in seconds.


def ask_health(host: str, port: int) -> None:
    """Ask for /health every 20 ms for ever, each time over a new connection."""
    due = time.monotonic()
    while True:
        connection = http.client.HTTPConnection(host, port, timeout=10)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            connection.getresponse().read()
        print(due, time.monotonic() - due, flush=True)
        due += EVERY
        time.sleep(max(0.0, due - time.monotonic()))


def write_tokens(host: str, port: int, model: str) -> None:
    """Have tokens streamed for ever, a line for each."""
    body = {"model": model, "prompt": [300, 301, 302], "max_tokens": 64, "temperature": 0, "logprobs": 0}
    while True:
        connection = http.client.HTTPConnection(host, port, timeout=10)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", json.dumps({**body, "stream": True}), headers)
            for line in connection.getresponse():
                if b'"token_logprobs"' in line:
                    tokens = json.loads(line[6:])["choices"][0]["logprobs"]["tokens"]
                    print(f"{time.monotonic()} 0\n" * len(tokens), end="", flush=True)
        time.sleep(0.01)


class Client:
    """One of the two, as a process; `between` gives how long each of its lines of some time took."""

    def __init__(self, scratch: Path, name: str, *arguments: str) -> None:
        self._lines = scratch / name
        with self._lines.open("wb") as lines:
            command = [sys.executable, __file__, "--child", name, *arguments]
            self._process = subprocess.Popen(command, stdout=lines)

    def between(self, start: float, end: float) -> list[float]:
        """Seconds that each thing took which was due in this time, shortest first."""
        lines = self._lines.read_text().rpartition("\n")[0].splitlines()
        rows = [tuple(map(float, line.split())) for line in lines]
        return sorted(seconds for due, seconds in rows if start <= due < end)

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


@dataclass
class Attacked:
    """A server with its two clients."""

    server: Server
    health: Client
    tokens: Client
    target: Target

    def at_rest(self, seconds: float) -> bool:
        """Whether /health is answered at once for two seconds, within some time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.5)
            now = time.monotonic()
            asked = self.health.between(now - 2.5, now - 0.5)
            if len(asked) > 1.5 / EVERY and asked[int(0.9 * len(asked))] < HEALTH_SECONDS:
                return True
        return False


@contextlib.contextmanager
def attacked(folder: Path, family: str, scratch: Path, memory_mb: int, seconds: float) -> Iterator[Attacked]:
    """Start a server and its clients."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, files[1]))  # the server's, from its start
    with Server([folder], scratch, "--device", "cpu", "--timeout", "5") as server:
        resource.setrlimit(resource.RLIMIT_NOFILE, files)
        address = urlsplit(server.url)
        host, port = str(address.hostname), int(address.port or 0)
        status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8")
        most = int(status.partition("VmSize:")[2].split()[0]) * 1024 + memory_mb * 2**20
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, (most, most))
        clients = [
            Client(scratch, "health", host, str(port)),
            Client(scratch, "tokens", host, str(port), family),
        ]
        try:
            one = Attacked(server, *clients, Target(host, port, family, scratch / "store.db", seconds))
            one.at_rest(30)
            yield one
        finally:
            for client in clients:
                client.stop()


@dataclass
class Row:
    """What an attack did."""

    name: str
    seconds: float
    got: Counter[int | str]
    health: Sequence[float]
    share: float
    memory_mb: float
    log_bytes: int
    alive: bool

    @property
    def missed(self) -> list[str]:
        """The goals that were missed."""
        goals = {
            "ended": self.alive, "health": self.alive and percentile(self.health, 0.99) <= HEALTH_SECONDS,
            "tokens": self.share >= SHARE, "memory": self.memory_mb < MEMORY_MB,
        }  # fmt: skip
        return [name for name, met in goals.items() if not met]

    def __str__(self) -> str:
        """A line of the table."""
        got = ", ".join(f"{count} × {status}" for status, count in self.got.items())
        p50, p99 = (1000 * percentile(self.health, share) for share in (0.5, 0.99))
        return (
            f"| {self.name} | {got} | {self.seconds:.1f} s | {p50:.0f} / {p99:.0f} ms | {self.share:.2f} | "
            f"{self.memory_mb:.0f} MiB | {self.log_bytes:,} | {', '.join(self.missed) or 'met'} |"
        )


def percentile(ordered: Sequence[float], share: float) -> float:
    """A percentile of numbers in order; infinity where there are none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("inf")


def memory_mb(pid: int, name: str) -> float:
    """VmRSS or VmHWM (its peak) of a process, MiB; 0 where it has ended."""
    with contextlib.suppress(OSError, IndexError):
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        return int(status.partition(f"{name}:")[2].split()[0]) / 1024
    return 0.0


def run(attack: Attack, one: Attacked) -> Row:
    """Send one attack, and look at what the others notice."""
    time.sleep(BEFORE)
    pid, log = one.server.process.pid, one.server.log
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    resident, said, start = memory_mb(pid, "VmRSS"), log.stat().st_size, time.monotonic()
    before = len(one.tokens.between(start - BEFORE, start)) / BEFORE
    got = Counter(attack.send(one.target))
    seconds = time.monotonic() - start
    time.sleep(max(0.0, LEAST - seconds))
    end = time.monotonic()
    peak, written = memory_mb(pid, "VmHWM"), log.stat().st_size - said
    one.at_rest(one.target.seconds)  # what was due is asked by then
    during = len(one.tokens.between(start, end)) / (end - start)
    return Row(
        attack.name, seconds, got, one.health.between(start, end), during / before if before else 0.0,
        peak - resident, written, one.server.process.poll() is None,
    )  # fmt: skip


def measure(
    attacks: Sequence[Attack], family: str, folder: Path, scratch: Path, chosen: argparse.Namespace
) -> bool:
    """Run the attacks one after the other, each on a server that has come to rest; whether all goals were met."""
    left, fine, number = list(attacks), True, 0
    while left:
        number += 1
        with attacked(folder, family, scratch / f"server-{number}", chosen.memory, chosen.seconds) as one:
            is_quiet = True
            while left and is_quiet:
                row = run(left.pop(0), one)
                print(row, flush=True)
                fine = fine and not row.missed
                is_quiet = one.server.process.poll() is None and one.at_rest(3)
    return fine


def main() -> None:
    """Attack, or be one of the clients (`--child`)."""
    options = protocol.parser(__doc__)
    options.add_argument("--only", default="*", help="attacks whose names fit this pattern")
    options.add_argument("--family", choices=FAMILIES, default="mmrec")
    options.add_argument(
        "--memory", type=int, default=4096, help="MiB that the server may take beside what it has"
    )
    options.add_argument("--child", nargs="+")
    chosen = options.parse_args()
    if chosen.child:
        name, host, port, *more = chosen.child
        {"health": ask_health, "tokens": write_tokens}[name](host, int(port), *more)
        return
    chosen.seconds = 5.0 if chosen.quick else 20.0
    attacks = [attack for attack in ATTACKS if fnmatch.fnmatch(attack.name, chosen.only)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / chosen.family
        make_model(folder, chosen.family, "small")
        print("| attack | answers | took | /health p50 / p99 | other's tokens | memory | log bytes | goals |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        fine = measure(attacks, chosen.family, folder, Path(temporary), chosen)
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
