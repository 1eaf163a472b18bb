"""docs/openai.md says what becomes of each field that OpenAI's client can send; here each of its rows is shown to hold.

The names come from the client's own types, so one that a newer client has, and these tables have not, fails.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import error_proofs, part_proofs, route_proofs
from serving.chat_proofs import (
    CHAT,
    CHAT_EXAMPLES,
    COMPLETION_EXAMPLES,
    COMPLETIONS,
    EMBEDDING_EXAMPLES,
    EMBEDDINGS,
)
from serving.openai_requests import Ask, Chat, Completions, Embeddings, Responses, keys
from serving.response_proofs import RESPONSE_EXAMPLES, RESPONSES
from serving.server import Server

from mm_rec.serving.protocol import request_model, response_schemas, schemas
from mm_rec.serving.protocol.fields import chat_request_type

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/openai.md"
BEGIN, END = "<!-- The tables begin: tests write them. -->", "<!-- The tables end. -->"
HOW = "run tests/serving/test_conformance.py with MMREC_WRITE_DOCS=1 to write the tables anew"
HONOURED, NO_EFFECT, REFUSED = "honoured", "no effect", "refused"


@dataclass(frozen=True)
class Table:
    """One route: who asks it, its schema, the proofs of its fields, and examples of those that do nothing."""

    ask: type[Ask]
    schema: type[request_model.RequestModel]
    proofs: dict[str, Callable[[Any], None]]
    examples: dict[str, Any]

    @property
    def title(self) -> str:
        """The route."""
        return (self.ask.__doc__ or "").rstrip(".")

    @property
    def fields(self) -> list[str]:
        """The client's fields and ours, by name."""
        return sorted(keys(self.ask.fields) | set(self.schema.model_fields))


TABLES = (
    Table(Chat, chat_request_type(), CHAT, CHAT_EXAMPLES),
    Table(Completions, schemas.CompletionRequest, COMPLETIONS, COMPLETION_EXAMPLES),
    Table(Responses, response_schemas.ResponseRequest, RESPONSES, RESPONSE_EXAMPLES),
    Table(Embeddings, schemas.EmbeddingRequest, EMBEDDINGS, EMBEDDING_EXAMPLES),
)


def status_of(schema: type[request_model.RequestModel], name: str) -> tuple[str, str]:
    """Whether a field is honoured, has no effect or is refused, and the words of its description."""
    named = {field.alias or own: field for own, field in schema.model_fields.items()}
    if name not in named:
        return REFUSED, "it is not known here"
    description = named[name].description or ""
    if description.startswith(request_model.NO_EFFECT):
        return NO_EFFECT, description.removeprefix(request_model.NO_EFFECT)
    if description.startswith("Refused"):  # always, or as "Refused where …"
        return REFUSED, description.removeprefix(request_model.REFUSED).removeprefix("Refused ")
    return HONOURED, description


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    keys = {"api_key": "none", "admin_api_key": "none"}
    with openai.OpenAI(base_url=f"{server.url}/v1", max_retries=0, **keys) as opened:
        yield opened


def show_no_effect(ask: Ask, without: dict[str, Any], given: dict[str, Any]) -> None:
    """The answer must be the same with and without."""
    assert seen(ask, **without, **given) == seen(ask, **without)


def seen(ask: Ask, **fields: Any) -> Any:
    """What of an answer must stay the same; of a stream the text, however it was cut, and its end."""
    answer = ask(**fields)
    if not fields.get("stream"):
        return ask.seen(answer)
    choices = [choice for chunk in answer for choice in chunk.choices]
    return "".join(choice.delta.content or "" for choice in choices), choices[-1].finish_reason


def show_refused(ask: Ask, given: dict[str, Any], name: str) -> None:
    """The error must name the field and say what to do."""
    error = ask.refusal(**given)
    assert error.param is not None and error.param.split(".")[-1] == name
    assert error.message and re.search("leave (the field|it) out|should be False", str(error.body))


@pytest.mark.parametrize(
    ("table", "name"), [pytest.param(t, f, id=f"{t.ask.__name__}-{f}") for t in TABLES for f in t.fields]
)
def test_each_field_does_what_the_table_says(
    table: Table, name: str, client: openai.OpenAI, request: pytest.FixtureRequest
) -> None:
    if name == "stream":
        request.getfixturevalue("unhurried")
    ask, (status, _) = table.ask(client), status_of(table.schema, name)
    assert (name in table.proofs, name in table.examples) == (status == HONOURED, status != HONOURED)
    if status == HONOURED:
        table.proofs[name](ask)
    elif status == NO_EFFECT:
        show_no_effect(ask, {}, {name: table.examples[name]})
    else:
        show_refused(ask, {name: table.examples[name]}, name)


def part_rows() -> list[tuple[part_proofs.Parts, str, str, str]]:
    """The parts of fields that are not honoured, the client's and ours: with their names, status and words."""
    rows = []
    for parts in part_proofs.ALL:
        named = {field.alias or own for own, field in parts.ours.model_fields.items()}
        for name in sorted(named.union(*map(keys, parts.theirs))):
            status, words = status_of(parts.ours, name)
            if status != HONOURED:
                rows.append((parts, name, status, words))
    return rows


@pytest.mark.parametrize(
    ("parts", "name", "status"),
    [pytest.param(*row[:3], id=f"{row[0].place}.{row[1]}") for row in part_rows()],
)
def test_each_part_of_a_field_does_what_the_table_says(
    parts: part_proofs.Parts, name: str, status: str, client: openai.OpenAI
) -> None:
    ask = parts.ask(client)
    build, value = part_proofs.EXAMPLES[f"{parts.place}.{name}"]
    if status == NO_EFFECT:
        assert seen(ask, **build(**{name: value})) == seen(ask, **build())
    else:
        show_refused(ask, build(**{name: value}), name)


def test_no_table_has_a_row_of_something_that_is_not_there() -> None:
    rows = {f"{parts.place}.{name}" for parts, name, *_ in part_rows()}
    assert set(part_proofs.EXAMPLES) == rows
    for table in TABLES:
        assert {*table.proofs, *table.examples} == set(table.fields)


@pytest.mark.parametrize("name", route_proofs.client_calls())
def test_each_call_of_the_client_does_what_the_table_says(name: str, client: openai.OpenAI) -> None:
    route_proofs.CALLS[name](client)


def test_each_route_of_the_server_has_a_row(client: openai.OpenAI) -> None:
    described = client.get(str(client.base_url.join("/openapi.json")), cast_to=object)
    assert set(route_proofs.CALLS) == set(route_proofs.client_calls())
    assert route_proofs.routes_of(described) == set(route_proofs.ROUTES)


@pytest.mark.parametrize("route", list(route_proofs.ROUTES))
def test_each_route_does_what_the_table_says(route: str, client: openai.OpenAI) -> None:
    route_proofs.ROUTES[route](client)


@pytest.mark.parametrize("code", error_proofs.ERRORS)
def test_each_error_is_what_the_table_says(code: str, server: Server) -> None:
    row = error_proofs.ERRORS[code]
    if isinstance(row.shown, str):
        assert error_proofs.shown_by(row.shown, code)
        return
    answer = row.shown(server)
    assert (answer.status_code, answer.json()["error"]["code"]) == (row.status, code)


def test_each_error_of_the_source_has_a_row() -> None:
    assert error_proofs.codes_of_the_source() == set(error_proofs.ERRORS)


def tables() -> str:
    """The tables as docs/openai.md has them."""
    lines = []
    for table in TABLES:
        lines += [f"### {table.title}", "", "| field | | |", "|---|---|---|"]
        known = keys(table.ask.fields)
        for name in sorted(table.fields, key=lambda name: (name not in known, name)):
            status, words = status_of(table.schema, name)
            told = words or inspect.getdoc(table.proofs[name]) or ""
            lines.append(row(f"`{name}`", status if name in known else f"{status}, ours", told))
        lines.append("")
    lines += [
        "### Parts of fields",
        "",
        "Those of the client that are not listed are honoured; those of nobody are refused.",
        "",
        "| part | | |",
        "|---|---|---|",
    ]
    lines += [row(f"`{parts.place}.{name}`", status, words) for parts, name, status, words in part_rows()]
    lines += ["", "### Routes", "", "| route | |", "|---|---|"]
    lines += [row(f"`{route}`", inspect.getdoc(proof) or "") for route, proof in route_proofs.ROUTES.items()]
    lines += ["", "### Calls of the client", "", "| `client.` | |", "|---|---|"]
    same: dict[str, list[str]] = {}
    for name in route_proofs.client_calls():
        same.setdefault(inspect.getdoc(route_proofs.CALLS[name]) or "", []).append(f"`{name}`")
    lines += [row(", ".join(names), words) for words, names in same.items()]
    lines += ["", "### Codes of errors", "", "| `code` | status | when |", "|---|---|---|"]
    lines += [row(f"`{code}`", str(one.status), one.when) for code, one in error_proofs.ERRORS.items()]
    return "\n".join(lines)


def row(*cells: str) -> str:
    """One row of a table: sentences without their full stops."""
    return f"| {' | '.join(cell.removesuffix('.') for cell in cells)} |"


def test_the_document_has_these_tables() -> None:
    before, begun, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    written, ended, after = rest.partition(END)
    assert begun and ended, f"{DOCUMENT.name} has no place for the tables: {BEGIN} … {END}"
    wanted = f"\n\n{tables()}\n\n"
    if os.environ.get("MMREC_WRITE_DOCS") == "1":
        DOCUMENT.write_text(before + BEGIN + wanted + END + after, encoding="utf-8")
        return
    assert written == wanted, f"docs/openai.md is not what the server does; {HOW}"


def test_the_documents_programs_run_as_written(
    server: Server, client: openai.OpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    text = DOCUMENT.read_text(encoding="utf-8").replace("http://127.0.0.1:8000", server.url)
    programs = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(programs) >= 6
    namespace: dict[str, Any] = {"__name__": DOCUMENT.name}
    for program in programs:
        exec(compile(program, DOCUMENT.name, "exec", dont_inherit=True), namespace)
    assert capsys.readouterr().out
    namespace["client"].close()
