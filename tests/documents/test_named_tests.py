"""Documents that name the tests which show a promise: each of these is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_NAME = re.compile(r"`(tests/[\w./]*)(?:::(\w+))?")


def names_in(path: Path) -> set[str]:
    return {
        node.name for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize("document", ["promises.md", "security.md"])
def test_every_test_that_a_document_names_is_there(document: str) -> None:
    named = _NAME.findall((ROOT / "docs" / document).read_text("utf-8"))
    assert len(named) > 30
    absent = [f"{file}::{name}" for file, name in named if name and name not in names_in(ROOT / file)]
    assert absent + [file for file, _ in named if not (ROOT / file).exists()] == []


def test_every_promise_of_the_server_has_a_test() -> None:
    promised, _, _ = (ROOT / "docs/security.md").read_text("utf-8").partition("## What is not promised")
    rows = [line for line in promised.splitlines() if line.startswith("|") and set(line) - set("|- ")]
    unshown = [row for row in rows if not _NAME.search(row) and row != "| promise | shown by |"]
    assert len(rows) > 30 and unshown == []
