"""Other processes that use a store, started at the same time."""

from __future__ import annotations

import subprocess
import sys


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that imports what it needs, says `ready`, waits for a line and goes on."""
    begin = (
        "import sys\nfrom mm_rec.store.store import Store, today\n"
        "from mm_rec.store.tables import new_id\n"
        "print('ready', flush=True)\nsys.stdin.readline()\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", begin + script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def release(*children: subprocess.Popen[str]) -> None:
    """Let processes go on at the same time."""
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
