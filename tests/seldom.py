"""Tests that are slow and seldom break: left out unless a file that they cover has changed since all tests were green.

A test says what it covers: `@pytest.mark.seldom(covers=["mm_rec/training/*"])`, patterns of paths from the root (`*`
also matches `/`). Its own file and what all depend on (`_ALWAYS`) need not be named. `tests/marked.json` names the
commit that was green; a run of all tests with MMREC_ALL_TESTS=1 in a clean checkout writes it, to be committed.
"""

from __future__ import annotations

import json
import os
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

RECORD = "tests/marked.json"
_ALWAYS = (
    *("constraints.txt", "pyproject.toml", "tests/conftest.py", "tests/seldom.py"),
    *(f"mm_rec/{name}.py" for name in ("config", "errors", "cpu", "runtime")),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--changed`, which `.ci/run` gives."""
    parser.addoption(
        "--changed", action="store_true", help="also the tests marked seldom whose covered files have changed"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line("markers", "seldom(covers): slow; run when one of the covered files has changed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the marked tests that are not due."""
    config.stash[_COMPLETE] = _is_whole(config)
    if os.environ.get("MMREC_ALL_TESTS") == "1":
        return
    changed = changed_files(config.rootpath) if config.getoption("--changed") else set()
    left_out = [item for item in items if not _is_due(item, changed)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


_COMPLETE = pytest.StashKey[bool]()


def _is_due(item: pytest.Item, changed: set[str] | None) -> bool:
    mark = item.get_closest_marker("seldom")
    if mark is None or changed is None:
        return True
    own = item.path.relative_to(item.config.rootpath).as_posix()
    patterns = [*mark.kwargs["covers"], own, *_ALWAYS]
    return any(fnmatch(name, pattern) for name in changed for pattern in patterns)


def changed_files(root: Path) -> set[str] | None:
    """What differs from the commit that was green, from the root; None where that commit is not known here."""
    try:
        commit = json.loads((root / RECORD).read_text("utf-8"))["commit"]
        known = _git(root, "diff", "--name-only", "-z", commit, "--")
        new = _git(root, "ls-files", "--others", "--exclude-standard", "-z")
    except (OSError, ValueError, KeyError, subprocess.CalledProcessError):
        return None
    return {name for name in (known + new).split("\0") if name}


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout


def _is_whole(config: pytest.Config) -> bool:
    """Whether nothing narrows the choice of tests."""
    narrowing = ("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf")
    everywhere = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return everywhere and not any(config.getoption(name, None) for name in narrowing)


def _skipped(config: pytest.Config) -> bool:
    """Whether a marked test was skipped, for something that is missing here."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return any("seldom" in report.keywords for report in reporter.stats.get("skipped", []))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write down the commit of a run of all tests that was green, where the checkout holds nothing else."""
    root = session.config.rootpath
    whole = session.config.stash.get(_COMPLETE, False) and os.environ.get("MMREC_ALL_TESTS") == "1"
    if exitstatus != 0 or not whole or _skipped(session.config):
        return
    try:
        if _git(root, "status", "--porcelain", "--", ".", f":!{RECORD}"):
            return
        commit = _git(root, "rev-parse", "HEAD").strip()
    except (OSError, subprocess.CalledProcessError):  # no checkout
        return
    (root / RECORD).write_text(json.dumps({"commit": commit}) + "\n", encoding="utf-8")
