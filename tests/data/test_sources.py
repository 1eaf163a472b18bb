from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mm_rec.data.sources import ReadCounts, documents_rule, find_files, read_documents
from mm_rec.errors import DataError


def texts(path: Path, **options: object) -> list[str]:
    return [document.text for document in read_documents([path], **options)]  # type: ignore[arg-type]


def refused(path: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        texts(path, **options)
    return str(caught.value)


def test_files_folders_and_globs_in_sorted_order_without_repeats(tmp_path: Path) -> None:
    for name in (
        "b.txt",
        "a.JSONL",
        "sub/c.txt.gz",
        "sub/d.jsonl.gz",
        "notes.md",
        ".hidden.txt",
        ".git/x.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = [path.relative_to(tmp_path).as_posix() for path in find_files([tmp_path / "b.txt", tmp_path])]
    assert names == ["a.JSONL", "b.txt", "sub/c.txt.gz", "sub/d.jsonl.gz"]
    assert find_files([tmp_path / "*.txt"]) == [tmp_path / "b.txt"]
    assert find_files([str(tmp_path / "**")]) == find_files([tmp_path])


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "book [1].txt").write_text("x")
    assert find_files([tmp_path / "book [1].txt"]) == [tmp_path / "book [1].txt"]


def test_linked_folders_are_read_once_even_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("x")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "circle").symlink_to(tmp_path / "real")
    assert [path.name for path in find_files([tmp_path / "data"])] == ["a.txt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.txt", "no such file"),
        ("*.txt", "nothing that matches"),
        ("*.pdf", "1 names match this pattern, none of them a text file"),
        ("empty", "the folder holds no files"),
        ("data.json", "jq"),
        ("report.pdf", "supported: .txt, .txt.gz, .jsonl, .jsonl.gz"),
    ],
)
def test_arguments_that_lead_to_nothing(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "data.json").write_text("[]")
    (tmp_path / "report.pdf").write_text("x")
    with pytest.raises(DataError, match=message.replace(".", r"\.")) as caught:
        find_files([tmp_path / name])
    assert caught.value.path == tmp_path / name


def test_no_arguments_at_all() -> None:
    with pytest.raises(DataError, match="no text files were given"):
        find_files([])


def test_the_default_rule() -> None:
    assert documents_rule([Path("a.txt")]) == "blank-line"
    assert documents_rule([Path("a.txt"), Path("b.jsonl")]) == "blank-line"
    assert documents_rule([Path("a.txt"), Path("b.txt.gz")]) == "file"
    assert documents_rule([Path("a.txt")], "line") == "line"


def test_the_three_rules_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff\n\nÇay içtik.\r\nSonra uyuduk.\n \n\nIşık\n".encode())
    cut = {
        rule: [(d.line, d.text) for d in read_documents([path], documents=rule)]
        for rule in ("blank-line", "line")
    }
    assert cut["blank-line"] == [(3, "Çay içtik.\nSonra uyuduk."), (7, "Işık")]
    assert cut["line"] == [(3, "Çay içtik."), (4, "Sonra uyuduk."), (7, "Işık")]
    assert texts(path, documents="file") == ["\n\nÇay içtik.\nSonra uyuduk.\n \n\nIşık\n"]


def test_blank_documents_are_skipped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": " \\n"}\n\n{"text": ""}\n{"text": "two"}')
    counts = ReadCounts()
    assert [d.text for d in read_documents([tmp_path], counts=counts)] == ["one", "two"]
    assert (counts.documents, counts.blank) == (2, 2)


def test_jsonl_keeps_the_text_as_it_is_and_gzip_reads_the_same(tmp_path: Path) -> None:
    rows = ["a\r\nb\u2028c\n", "  İstanbul’da 😀  "]
    content = "\ufeff" + "".join(json.dumps({"id": 1, "body": row}) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    assert texts(tmp_path / "a.jsonl", text_field="body") == rows
    assert texts(tmp_path / "b.jsonl.gz", text_field="body") == rows


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ('{"body": "x", "id": 3}', ["no field 'text'", "'body', 'id'", "--text-field"]),
        ('{"text": null}', ["not a string but null", "--text-field"]),
        ('{"text": ["x"]}', ['not a string but ["x"]']),
        ('["x"]', ["a JSON list, not an object"]),
        ('{"text": "x"', ["not JSON", "jq -c"]),
        ("[" * 100_000, ["not JSON"]),
        ("1" * 5000, ["not JSON"]),
        ('{"text": "cut \\ud83d"}', ["surrogate", "'\\ud83d'", "character 4"]),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, row: str, parts: list[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n\n' + row + "\n")
    message = refused(path)
    assert message.startswith(f"{path}:3: ")
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
@pytest.mark.parametrize("content", [b"", "\ufeff".encode()])
def test_an_empty_file(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert "the file is empty" in refused(path)


def test_a_zero_byte_gzip_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(b"")
    assert "the file is empty" in refused(tmp_path / "a.txt.gz")


def test_a_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"some text\nmore\0text, all valid UTF-8\n")
    assert refused(path).startswith(f"{path}:2: this is a binary file, not text (byte 14")
    path.write_bytes(bytes(range(1, 256)) * 20)
    assert "binary file" in refused(path)
    path.write_bytes(gzip.compress(b"text"))
    assert "name that ends in .gz" in refused(path)


def test_a_turkish_eight_bit_file_names_encoding_place_and_command(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"plain\nabc " + "ışık ağacı".encode("cp1254"))
    message = refused(path)
    assert message.startswith(f"{path}:2: byte 10 (0xFD) is not UTF-8")
    assert "cp1254 (Turkish) or latin-1" in message and "ışık ağacı" in message
    mended = tmp_path / "a.utf8.txt"
    assert f"iconv -f CP1254 -t UTF-8 '{path}' > '{mended}'" in message


def test_a_western_eight_bit_file_and_a_compressed_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress('{"text": "café"}\n'.encode("latin-1")))
    assert (
        f"gzip -dc '{path}' | iconv -f LATIN1 -t UTF-8 | gzip > '{tmp_path / 'a.utf8.jsonl.gz'}'"
        in refused(path)
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_wide_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Bir varmış bir yokmuş, evvel zaman içinde\n".encode(encoding))
    name = {"utf-16-le": "UTF-16LE", "utf-16-be": "UTF-16BE"}.get(encoding, encoding.upper())
    assert f"iconv -f {name} -t UTF-8" in refused(path)


def test_damaged_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("güzel\nbozuk ".encode() + b"\xff son\n")
    assert "iconv -c -f UTF-8 -t UTF-8" in (message := refused(path))
    assert message.startswith(f"{path}:2: byte 13 (0xFF)")
    path.write_bytes("güzel ağ".encode()[:-1])
    assert "ends in the middle of a character" in refused(path)


def test_broken_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    whole = gzip.compress("".join(f"line {i}\n" for i in range(20_000)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    assert "ends too early" in (message := refused(path)) and "gzip -t" in message
    path.write_bytes(whole[:-8] + b"\0" * 8)
    assert "not a sound gzip file" in refused(path)
    path.write_bytes(whole[:100] + b"\xff" * 200 + whole[300:])
    assert "gzip" in refused(path)
    path.write_bytes(b"plain text")
    assert "not a sound gzip file" in refused(path)


def test_a_link_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    assert "cannot be read (No such file" in refused(tmp_path)


def test_reading_is_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "first"}\n' * 10_000 + "broken\n")
    stream = read_documents([path])
    assert next(stream).text == "first"
    stream.close()  # type: ignore[attr-defined]
