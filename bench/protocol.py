"""How benchmarks compare: each contender in a process of its own, A B A B …, median ratios with their range."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mm_rec import cpu

MARK = "RESULT "


def child_result(values: dict[str, Any]) -> None:
    """Called at the end of a contender's process: hand its figures to the parent."""
    print(MARK + json.dumps(values), flush=True)


def run_child(
    script: str, arguments: Sequence[str], timeout: float, settings: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run `script` with the arguments in a fresh process; returns its figures and `peak_mb`, its peak resident set.

    `settings` are added to its environment.
    """
    command = [sys.executable, script, *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(settings or {})},
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{err[-3000:]}")
    line = next(line for line in out.splitlines() if line.startswith(MARK))
    result: dict[str, Any] = json.loads(line.removeprefix(MARK))
    return result


def commit() -> str:
    """The commit that the figures are of."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures of a cell: those that are in its file, or those that are made now, written there and printed."""
    if path.is_file():
        known: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return known
    found = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found), flush=True)
    return found


def compare(
    bench: str,
    ours: Callable[[], dict[str, Any]],
    peers: dict[str, Callable[[], dict[str, Any]]],
    rounds: int,
    value: str,
    facts: dict[str, Any],
) -> dict[str, list[dict[str, Any]]]:
    """Run all contenders in turn, `rounds` times, and print one line of JSON for each peer; returns all figures.

    `ratio` is the median over the rounds of ours / peer of the figure `value`; `memory_ratio` that of `peak_mb`.
    """
    results: dict[str, list[dict[str, Any]]] = {"mm-rec": [], **{peer: [] for peer in peers}}
    for number in range(rounds):
        for name, contender in {"mm-rec": ours, **peers}.items():
            results[name].append(contender())
            print(f"round {number + 1}/{rounds} {name}: {results[name][-1]}", file=sys.stderr, flush=True)
    for peer in peers:
        pairs = list(zip(results["mm-rec"], results[peer], strict=True))
        ratios = [mine[value] / theirs[value] for mine, theirs in pairs]
        row = {
            "bench": bench,
            "peer": peer,
            "ratio": round(statistics.median(ratios), 3),
            "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
            f"ours_{value}": round(statistics.median(mine[value] for mine, _ in pairs), 1),
            f"peer_{value}": round(statistics.median(theirs[value] for _, theirs in pairs), 1),
            "memory_ratio": round(statistics.median(m["peak_mb"] / t["peak_mb"] for m, t in pairs), 3),
            "ours_peak_mb": round(statistics.median(mine["peak_mb"] for mine, _ in pairs)),
            "peer_peak_mb": round(statistics.median(theirs["peak_mb"] for _, theirs in pairs)),
            "rounds": rounds,
            "threads": os.cpu_count(),
            "processor": cpu.describe(),
            **facts,
        }
        print(json.dumps(row), flush=True)
    return results


class Clock:
    """Tokens that each step read, and when it ended, in seconds."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ends: list[float] = []

    def say(self, text: str) -> None:
        """Our loop's sentences are of no interest here."""

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        """A step of our loop ended."""
        self.ends.append(time.perf_counter())


def peak_mb() -> float:
    """Peak resident set of this process in MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has; called before torch is imported, so that MMREC_ISA holds here too."""
    cpu.configure_libraries()
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--quick", action="store_true", help="a first look, in under a minute")
    options.add_argument("--rounds", type=int, default=5)
    return options
