"""The folder of a run, and its lineage."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mm_rec
from mm_rec.errors import ConfigError
from mm_rec.runs.files import write_json

RECIPE_FILE, LINEAGE = "recipe.yaml", "lineage.json"


def new_run(folder: Path, name: str | None, default: str) -> Path:
    """Return the path of a run that does not exist yet; raises ConfigError where a chosen name is taken or is no name.

    Without a name: `default`, then `default-2`, `default-3` …
    """
    if name is not None:
        run = folder / require_run_name(name)
        if (run / RECIPE_FILE).exists():
            raise ConfigError(
                f"{run}: this run exists. Continue it with --resume {run}, or choose another --name"
            )
        return run
    run, number = folder / require_run_name(default), 2
    while run.exists():
        run, number = folder / f"{default}-{number}", number + 1
    return run


def require_run_name(name: str) -> str:
    """Return the name; raises ConfigError unless it can be the name of a folder in the folder of all runs."""
    if name in ("", ".", "..") or len(name.encode()) > 200 or re.search(r"[/\\\x00-\x1f]", name):
        raise ConfigError(
            f"{name!r} cannot be the name of a run: it is that of a folder, without / and \\ "
            "and of 200 bytes at most. "
            "Say where it lies with --runs"
        )
    return name


def require_run(run: Path) -> Path:
    """Return the path; raises ConfigError where there is no run."""
    if not (run / RECIPE_FILE).is_file():
        raise ConfigError(
            f"{run}: there is no run here (no {RECIPE_FILE} in it). Give the folder of a run, like runs/tiny"
        )
    return run


def write_lineage(run: Path, inputs: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    """Write `lineage.json`: content hashes of the inputs, the code's version, the machine."""
    content = {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": mm_rec.__version__,
        "commit": _commit(),
        "inputs": dict(inputs),
        "machine": dict(machine),
    }
    write_json(run / LINEAGE, content)


def _commit() -> str | None:
    """Return the commit of the checkout that the code runs from; None where it is no checkout, or there is no git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    except OSError:
        return None
    return found.stdout.strip() or None
