"""Environments of other programs' clients, one each, with the exact versions of `pins/`.

They are made when first needed, from PyPI and npm, and kept in `~/.cache/mmrec/clients` (or `MMREC_CLIENTS`) under the
hash of what they hold. Node.js comes from PyPI too: they need 22, and Debian has 20. To renew a file of `pins/`:
`echo langchain-openai | uv pip compile - --universal --python-version 3.11 --no-annotate --no-header -o FILE`, and for
npm, after a change of `package.json`, `npm install --package-lock-only --omit-lockfile-registry-resolved`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

PINS = Path(__file__).parent / "pins"
_NO_NETWORK = re.compile(
    r"dns error|error sending request|tcp connect error|ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ENETUNREACH"
)


def python_environment(name: str) -> Path:
    """The folder of a virtual environment with what `pins/NAME.txt` names, and nothing else."""
    pins = PINS / f"{name}.txt"

    def build(folder: Path) -> None:
        _install("venv", "--quiet", "--relocatable", "--python", sys.executable, str(folder))
        python = str(folder / "bin" / "python")
        _install("pip", "install", "--quiet", "--no-deps", "--python", python, "--requirements", str(pins))

    return _cached(name, [pins], build)


def node_environment() -> tuple[Path, Path]:
    """The `node` to run, and the `node_modules` with what `pins/package-lock.json` names."""
    programs = python_environment("node") / "bin"
    files = [PINS / "package.json", PINS / "package-lock.json"]

    def build(folder: Path) -> None:
        folder.mkdir()
        for file in files:
            shutil.copy(file, folder)
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        command = [programs / "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        _run(command, cwd=folder, env={**os.environ, "PATH": path})

    return programs / "node", _cached("npm", files, build) / "node_modules"


def _cached(name: str, files: list[Path], build: Callable[[Path], None]) -> Path:
    """The folder that was built from these files, now or before; one that is only half built is never found."""
    digest = hashlib.sha256(sys.version.encode())
    for file in files:
        digest.update(file.read_bytes())
    kept = Path(os.environ.get("MMREC_CLIENTS") or Path.home() / ".cache" / "mmrec" / "clients")
    folder = kept / f"{name}-{digest.hexdigest()[:16]}"
    if not folder.exists():
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept) as scratch:
            build(Path(scratch) / name)
            (Path(scratch) / name).rename(folder)
    return folder


def _install(*arguments: str) -> None:
    _run([sys.executable, "-m", "uv", *arguments])


def _run(command: list[str | Path], **options: object) -> None:
    """Run an installer; without a network the test is skipped, and any other failure is one."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if result.returncode and _NO_NETWORK.search(result.stderr):
        pytest.skip(f"the clients cannot be fetched from PyPI and npm: {result.stderr.splitlines()[-1]}")
    assert result.returncode == 0, result.stderr
