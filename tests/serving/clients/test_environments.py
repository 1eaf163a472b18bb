"""The environments of the clients: what they hold is exact, comes whole or not at all, and is said in the document."""

from __future__ import annotations

import json
import os
import re
from itertools import groupby
from pathlib import Path

import pytest
from serving.clients.clients import CLIENTS, version
from serving.clients.environments import PINS, node_environment, python_environment

DOCUMENT = Path(__file__).parents[3] / "docs" / "openai.md"
BEGIN, END = "<!-- The clients begin: tests write them. -->", "<!-- The clients end. -->"
HOW = "run tests/serving/clients/test_environments.py with MMREC_WRITE_DOCS=1 to write them anew"
ASKED = {
    "chat": "an answer",
    "stream": "a stream",
    "tools": "a tool round",
    "structured": "structured output",
    "combined": "structured output with tools",
    "embeddings": "embeddings",
    "turns": "several turns",
    "json_object": "an object without schema",
    "schema_of_records": "free names",
    "schema_of_sets": "sets",
    "schema_of_forms": "pydantic's formats and large bounds",
    "schema_of_formats": "zod's formats",
    "likelihoods": "likelihoods",
}


def test_every_package_of_an_environment_has_one_version() -> None:
    exact = re.compile(r"[\w.-]+(\[\w,]+\])?==[\w.+]+( ; .+)?")
    for file in PINS.glob("*.txt"):
        lines = file.read_text("utf-8").splitlines()
        assert lines and [line for line in lines if not exact.fullmatch(line)] == [], file
    locked = json.loads((PINS / "package-lock.json").read_text("utf-8"))["packages"]
    for name, asked in json.loads((PINS / "package.json").read_text("utf-8"))["dependencies"].items():
        assert locked[f"node_modules/{name}"]["version"] == asked
    assert all("integrity" in package for path, package in locked.items() if path)


@pytest.mark.parametrize("build", [lambda: python_environment("openai-3"), node_environment])
def test_without_a_network_the_test_is_skipped_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: object
) -> None:
    monkeypatch.setenv("MMREC_CLIENTS", str(tmp_path / "kept"))
    monkeypatch.setenv("UV_INDEX_URL", "http://127.0.0.1:9/simple")  # the port of `discard`: nobody listens
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(pytest.skip.Exception, match="cannot be fetched from PyPI and npm"):
        build()  # type: ignore[operator]
    assert list((tmp_path / "kept").iterdir()) == []


def _rows() -> list[str]:
    """A row for each client, versions of one together where they are asked for the same."""
    rows = []
    for (package, index, names), group in groupby(
        CLIENTS, lambda name: (CLIENTS[name].package, CLIENTS[name].index, CLIENTS[name].case_names)
    ):
        kinds = dict.fromkeys(name.partition("_by_")[0] for name in names.split())
        versions = ", ".join(version(name) for name in group)
        rows.append(f"| {package} ({index}) | {versions} | {', '.join(ASKED[kind] for kind in kinds)} |")
    return rows


def test_the_document_has_the_clients_and_their_versions() -> None:
    before, begun, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    written, ended, after = rest.partition(END)
    assert begun and ended, f"{DOCUMENT.name} has no place for the clients: {BEGIN} … {END}"
    head = ["| client | versions | asked for |", "|---|---|---|"]
    wanted = "\n\n" + "\n".join([*head, *_rows()]) + "\n\n"
    if os.environ.get("MMREC_WRITE_DOCS") == "1":
        DOCUMENT.write_text(before + BEGIN + wanted + END + after, encoding="utf-8")
        return
    assert written == wanted, f"docs/openai.md names other clients than are tried; {HOW}"
