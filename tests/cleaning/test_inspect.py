from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import typer
import zstandard

from mm_rec.cleaning.inspect import LengthStats, default_detector, inspect_file
from mm_rec.cli.data_inspect import inspect
from mm_rec.terminal import run_app


def run(*arguments: object) -> int:
    app = typer.Typer()
    app.command()(inspect)
    return run_app(app, "mmrec data inspect", [str(argument) for argument in arguments])


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A zstd-compressed .jsonl with a duplicate, mojibake, blank text and rows that cannot be used."""
    rows = [
        {"id": 1, "body": "Işık ağacın üstünde parlıyor.", "tag": "a"},
        {"id": 2, "body": "Işık ağacın üstünde parlıyor.", "tag": None},
        {"id": 3.5, "body": "TÃ¼rkÃ§e yazÄ±lar bozuk görünüyor."},
        {"id": 4, "body": " \n"},
        {"id": 5},
        {"id": 6, "body": "The quick brown fox jumps over the lazy dog again."},
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path = tmp_path / "a.jsonl.zst"
    content = "\r\n".join([*lines[:3], "{broken", *lines[3:], "[]"])
    path.write_bytes(zstandard.ZstdCompressor().compress(b"\xef\xbb\xbf" + content.encode()))
    return path


def test_everything_that_is_said_about_rows(mixed: Path) -> None:
    report = inspect_file(mixed, samples=2)
    assert (report.kind, report.compression, report.bytes) == ("jsonl", "zst", mixed.stat().st_size)
    assert (report.rows, report.documents, report.blank, report.duplicates, report.mojibake) == (
        6,
        4,
        1,
        1,
        1,
    )
    assert report.text_field == "body"
    assert report.fields["id"].types == {"number": 6}
    assert (report.fields["tag"].rows, report.fields["tag"].types) == (2, {"string": 1, "null": 1})
    assert report.languages == {"tr": 2, "en": 2}
    assert (report.line_ends, report.byte_order_mark) == ({"\\r\\n": 7}, True)
    assert report.samples == ["Işık ağacın üstünde parlıyor."] * 2
    assert report.lengths == LengthStats(29, 34, 50, 50, {16: 2, 32: 2})
    assert {reason: problem.count for reason, problem in report.problems.items()} == {
        "not-json": 2,
        "no-field": 1,
    }
    assert report.problems["not-json"].first.startswith(f"{mixed}:4: this row is not JSON")
    assert report.complete


def test_the_field_that_is_asked_for_is_the_text(mixed: Path) -> None:
    report = inspect_file(mixed, text_field="tag")
    assert (report.text_field, report.documents, report.problems["no-field"].count) == ("tag", 1, 4)


def test_a_field_named_text_is_the_text_even_beside_a_longer_one(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,url\nkısa,https://example.org/uzun-bir-adres\n")
    assert inspect_file(path).text_field == "text"


def test_parquet_with_nested_fields_and_without_any_string(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["bir", "iki"], "tags": [["a"], []]}), path)
    report = inspect_file(path)
    assert (report.documents, report.fields["tags"].types, report.line_ends) == (2, {"list": 2}, {})
    path = tmp_path / "b.jsonl"
    path.write_text('{"messages": []}\n' * 1000)
    report = inspect_file(path)
    assert (report.text_field, report.documents, report.rows, report.complete) == (None, 0, 101, False)


def test_reading_stops_at_the_limit_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("on karakter\n" * 1000)
    report = inspect_file(path, documents="line", limit=110)
    assert (report.documents, report.characters, report.complete) == (10, 110, False)
    assert inspect_file(path, documents="line", limit=11_000).complete


def test_rows_keyed_by_anything_do_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "x", "key {i}": 1}}\n' for i in range(500)))
    fields = inspect_file(path).fields
    assert len(fields) == 101 and fields["…"].rows == 401


def test_a_file_that_cannot_be_read_is_a_problem_in_the_report(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b"plain")
    report = inspect_file(path)
    assert (report.documents, report.lengths, list(report.problems)) == (0, None, ["damaged"])
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    report = inspect_file(tmp_path / "b.txt")
    assert (report.bytes, list(report.problems)) == (None, ["missing"])


def test_the_command_prints_a_page_for_each_file(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b.txt").write_text("[bold]bir[/bold] satır\n" * 40)
    assert run(tmp_path, "--rows", 1) == 0
    page = capsys.readouterr().out
    for part in (
        "a.jsonl.zst",
        "JSON Lines, zstd",
        "body (the text)",
        "mojibake",
        "problem: not-json",
        "number",
    ):
        assert part in page
    assert "1: [bold]bir[/bold] satır" in page  # text is never taken for markup
    assert "each a block between blank lines" in page
    assert max(map(len, page.splitlines())) <= 80


def test_the_command_prints_the_same_as_json(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(mixed, "--json") == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert (report["path"], report["documents"], report["fields"]["tag"]["types"]) == (
        str(mixed),
        4,
        {"string": 1, "null": 1},
    )
    assert report["problems"]["no-field"]["count"] == 1


def test_a_mistake_is_one_paragraph_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none.txt") == 2
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "a.txt").write_text("x")
    assert run(tmp_path, "--limit", "much") == 2


def test_real_turkish_is_told_from_real_azerbaijani(real_data: Callable[[str], Path]) -> None:
    detect, _ = default_detector()
    shares = {}
    for code in ("tr", "az"):
        path = real_data(f"lid/lingua_sentences_{code}.txt")
        languages = inspect_file(path, detect, documents="line").languages
        shares[code] = languages[code] / sum(languages.values())
    assert min(shares.values()) > 0.9, shares
