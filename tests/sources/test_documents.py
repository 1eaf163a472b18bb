from __future__ import annotations

import gzip
import http.server
import importlib.util
import json
import pickle
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from mm_rec.errors import DataError, MissingExtraError
from mm_rec.sources.documents import ReadCounts, default_documents_rule, find_files, read_documents
from mm_rec.sources.line_reader import read_lines
from mm_rec.sources.problems import Problem


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
    names = [str(path).removeprefix(f"{tmp_path}/") for path in find_files([tmp_path / "b.txt", tmp_path])]
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
        ("report.pdf", "supported: .txt, .jsonl, .csv, .tsv (each also as"),
    ],
)
def test_arguments_that_lead_to_nothing(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "data.json").write_text("[]")
    (tmp_path / "report.pdf").write_text("x")
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        find_files([tmp_path / name])
    assert caught.value.path == tmp_path / name


def test_no_arguments_at_all() -> None:
    with pytest.raises(DataError, match="no text files were given"):
        find_files([])


def test_the_default_rule() -> None:
    assert default_documents_rule([Path("a.txt")]) == "blank-line"
    assert default_documents_rule([Path("a.txt"), Path("b.jsonl")]) == "blank-line"
    assert default_documents_rule([Path("a.txt"), Path("b.txt.gz")]) == "file"
    assert default_documents_rule([Path("a.txt")], "line") == "line"


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
    # The time in its header may hold a line's end, and what is before it enough zeros for UTF-16.
    for seconds in (0, 10, 10 << 8, 10 << 24):
        path.write_bytes(gzip.compress(b"text", mtime=seconds))
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


def problems(path: Path | str, **options: object) -> tuple[list[str], list[tuple[str, int | None]]]:
    """The texts of a lenient reading, and reason and line of each problem."""
    met: list[Problem] = []
    read = read_documents([path], on_problem=met.append, **options)  # type: ignore[arg-type]
    return [document.text for document in read], [(problem.reason, problem.line) for problem in met]


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}
ROWS = "".join(json.dumps({"text": f"satır {i}"}, ensure_ascii=False) + "\n" for i in range(20_000)).encode()


def test_zstd_reads_like_plain_text_also_in_several_frames(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(ROWS)
    (tmp_path / "b.jsonl.zst").write_bytes(zstd(ROWS[: 7 * 2**15]) + zstd(b"") + zstd(ROWS[7 * 2**15 :]))
    (tmp_path / "c.txt.ZST").write_bytes(zstd("Çay\n\nışık".encode()))
    assert texts(tmp_path / "b.jsonl.zst") == texts(tmp_path / "a.jsonl")
    assert texts(tmp_path / "c.txt.ZST") == ["Çay", "ışık"]


def test_broken_zstd(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstd(ROWS)[:-100])
    assert "ends too early" in (message := refused(path)) and "zstd -t" in message
    path.write_bytes(b"plain text")
    assert "not a sound zstd file" in refused(path)
    path.write_bytes(b"")
    assert "the file is empty" in refused(path)
    (tmp_path / "a.txt").write_bytes(zstd(ROWS))
    assert "name that ends in .zst" in refused(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'id,body\n1,"Bir, iki\nüç ""dört"""\n\n2,son\n'),
        ("a.csv", 'id;body\r\n1;"Bir, iki\r\nüç ""dört"""\r\n2;son'),
        ("a.tsv", '\ufeffid\tbody\n1\t"Bir, iki\nüç ""dört"""\n2\tson\n'),
    ],
)
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_csv_and_tsv_with_quoted_line_ends(tmp_path: Path, name: str, content: str, packed: str) -> None:
    path = tmp_path / (name + packed)
    path.write_bytes(PACK[packed](content.encode()))
    read = [(item.line, item.text) for item in read_documents([path], text_field="body")]
    assert read == [(1, 'Bir, iki\nüç "dört"'), (2, "son")]


def test_csv_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,one\n2,two, three\n3,"a"b\n4,four\n')
    assert refused(path).startswith(f"{path}:2: this row has 3 fields and the header 2")
    assert problems(path) == (["one", "four"], [("bad-row", 2), ("bad-row", 3)])
    assert "no column 'body'; the columns are: 'id', 'text'" in refused(path, text_field="body")
    assert problems(path, text_field="body") == ([], [("no-field", None)])
    path.write_text("id,text\n")
    assert "no rows" in refused(path)
    path.write_text('id,text\n1,one\n2,"never closed\n' + "x\n" * 200_000)
    assert problems(path, max_document_bytes=200_000) == (["one"], [("too-large", 2)])
    assert "is a quotation mark of it not closed?" in refused(path, max_document_bytes=200_000)
    assert "unexpected end of data" in refused(path)


def test_parquet_reads_one_column_and_counts_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [f"satır {i}" for i in range(3000)]
    table = pyarrow.table({"id": range(3000), "body": rows})
    pyarrow.parquet.write_table(table, path, row_group_size=700)
    read = list(read_documents([tmp_path], text_field="body"))
    assert [item.text for item in read] == rows
    assert (read[0].line, read[-1].line, read[-1].path) == (1, 3000, path)
    assert "no column 'text'; the columns are: 'id', 'body'" in refused(path)
    assert refused(path, text_field="id").startswith(f"{path}:1: the field 'id' is not a string but 0")


def test_parquet_that_stores_text_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": pyarrow.array(["çay".encode(), b"\xfe", b"son"], pyarrow.large_binary())})
    pyarrow.parquet.write_table(table, path)
    assert problems(path) == (["çay", "son"], [("encoding", 2)])
    assert refused(path) == f"{path}:2: the column 'text' of this row is not UTF-8. Mend or delete it"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", ""])
def test_files_joined_with_their_byte_order_marks(tmp_path: Path, end: str) -> None:
    parts = [f"\ufeffbir{end}".encode(), f"\ufeff\ufeffiki \ufeffüç{end}".encode()]
    for name, content in (("a.txt", b"".join(parts)), ("a.txt.gz", b"".join(map(gzip.compress, parts)))):
        (tmp_path / name).write_bytes(content)
        read = "".join(texts(tmp_path / name, documents="file"))
        assert read == ("bir\niki \ufeffüç\n" if end else "bir\ufeff\ufeffiki \ufeffüç")
    rows = [f'\ufeff{{"text": "{text}"}}{end}'.encode() for text in ("bir", "iki")]
    for name, content in (("a.jsonl", b"".join(rows)), ("a.jsonl.gz", b"".join(map(gzip.compress, rows)))):
        (tmp_path / name).write_bytes(content)
        if end:
            assert texts(tmp_path / name) == ["bir", "iki"]
        else:
            assert "joined here without a line end between" in refused(tmp_path / name)


def test_parquet_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    strings = pyarrow.array([b"one", b"\xff", None, b"four"]).cast(pyarrow.string(), safe=False)
    pyarrow.parquet.write_table(pyarrow.table({"text": strings}), path)
    assert problems(path) == (["one", "four"], [("encoding", 2), ("not-a-string", 3)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert "not a sound Parquet file" in refused(path)
    assert problems(path) == ([], [("damaged", 1)])
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
    assert "no rows" in refused(path)


@pytest.mark.parametrize(
    ("name", "module"), [("a.jsonl.zst", "zstandard"), ("a.parquet", "pyarrow"), ("a.csv.zst", "zstandard")]
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    (tmp_path / name).write_bytes(zstd(ROWS))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mm-rec\[data\]'"):
        problems(tmp_path / name)


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_urls_of_files_folders_and_patterns(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    memory.pipe("/set/a.txt", b"bir\n\niki")
    memory.pipe("/set/sub/b [1].jsonl.gz", gzip.compress(ROWS))
    memory.pipe("/set/.cache/c.txt", b"hidden")
    memory.pipe("/set/notes.md", b"x")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["üç"]}), tmp_path / "d.parquet")
    memory.pipe("/set/d.parquet", (tmp_path / "d.parquet").read_bytes())
    names = [str(file) for file in find_files(["memory://set", "memory:///set/a.txt", tmp_path])]
    files = ["memory:///set/a.txt", "memory:///set/d.parquet", "memory:///set/sub/b [1].jsonl.gz"]
    assert names == sorted([str(tmp_path / "d.parquet"), *files])
    assert [file.name for file in find_files(["memory://set/**/*.gz"])] == ["b [1].jsonl.gz"]
    assert [document.text for document in read_documents(["memory://set/a.txt"])] == ["bir", "iki"]
    read = list(read_documents(["memory://set/sub/", "memory://set/d.parquet"]))
    assert len(read) == 20_001 and read[0].text == "üç"
    assert str(read[-1].path) == files[2] and read[-1].line == 20_000
    assert pickle.loads(pickle.dumps(read[-1])) == read[-1]
    assert find_files([f"file://{tmp_path}"]) == [tmp_path / "d.parquet"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nothing/here.txt", "nothing at this URL"),
        ("memory://nothing/*.txt", "no text found"),
        ("memory:///some/report.pdf", "not supported"),
        ("memory://others", "2 files of other kinds"),
        ("nosuchprotocol://x/a.txt", "not known"),
    ],
)
def test_urls_that_lead_to_nothing(memory: fsspec.AbstractFileSystem, url: str, message: str) -> None:
    for name in ("/some/report.pdf", "/others/a.md", "/others/b/c.md"):
        memory.pipe(name, b"x")
    with pytest.raises(DataError, match=message) as caught:
        find_files([url])
    assert str(caught.value).startswith(f"{url}: ")
    met: list[Problem] = []
    assert list(read_documents([url], on_problem=met.append)) == [] and len(met) == 1


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server over tmp_path, as an address that ends in /."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_the_web(tmp_path: Path, web: str) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.jsonl.gz").write_bytes(gzip.compress(ROWS))
    (tmp_path / "b.txt").write_text("bir\n\niki\n")
    assert len(list(read_documents([web + "sub/a.jsonl.gz?download=true"]))) == 20_000
    assert [str(file) for file in find_files([web])] == [web + "b.txt", web + "sub/a.jsonl.gz"]
    assert [str(file) for file in find_files([web + "*.txt"])] == [web + "b.txt"]
    with pytest.raises(DataError, match="nothing at this URL"):
        find_files([web + "none.txt"])


def test_a_web_address_without_its_package_or_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    address = f"http://127.0.0.1:{port}/a.txt"
    if importlib.util.find_spec("aiohttp"):
        with pytest.raises(DataError, match="or its server does not answer"):
            find_files([address])
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "http", raising=False)
    with pytest.raises(MissingExtraError, match=r"mm-rec\[data\]"):
        find_files([address])


def test_rows_that_cannot_be_used_are_skipped_and_told_once(tmp_path: Path) -> None:
    bad = ["{", "[]", '{"body": "x"}', '{"text": 3}', '{"text": "\\ud83d"}']
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{row}\n{{"text": "{number}"}}\n' for number, row in enumerate(bad)))
    counts = ReadCounts()
    read, met = problems(path, counts=counts)
    assert read == ["0", "1", "2", "3", "4"] and counts.documents == 5
    reasons = ["not-json", "not-json", "no-field", "not-a-string", "surrogate"]
    assert met == list(zip(reasons, [1, 3, 5, 7, 9], strict=True))


def test_a_problem_says_what_the_error_says(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n{\n')
    met: list[Problem] = []
    list(read_documents([path], on_problem=met.append))
    assert [str(problem) for problem in met] == [refused(path)]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (ROWS[:500_000].rpartition(b"\n")[0] + b'\n{"text": "\xfd\xfe"}\n' + ROWS, "encoding"),
        (ROWS[:500_000].rpartition(b"\n")[0] + b'\n{"text": "\0"}\n' + ROWS, "binary"),
    ],
)
def test_what_is_before_bytes_that_are_no_text_is_read(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    before = ROWS[:500_000].count(b"\n")
    read, met = problems(path)
    assert read == [f"satır {i}" for i in range(before)]
    assert met == [(problem, before + 1)]


@pytest.mark.parametrize("packed", ["gz", "zst"])
@pytest.mark.parametrize("name", ["jsonl", "txt"])
def test_whole_documents_before_the_break_of_a_compressed_file_are_read(
    tmp_path: Path, packed: str, name: str
) -> None:
    path = tmp_path / f"a.{name}.{packed}"
    noise = random.Random(0).randbytes(400_000).hex()  # half of the file is half of the text
    lines = [f"{noise[40 * i : 40 * i + 40]} {i}" for i in range(20_000)]
    content = "\n\n".join(json.dumps({"text": line}) if name == "jsonl" else line for line in lines).encode()
    whole = PACK[f".{packed}"](content)
    path.write_bytes(whole[: len(whole) // 2])
    read, met = problems(path)
    assert read == lines[: len(read)]
    assert 0.2 * len(lines) < len(read) < 0.8 * len(lines)
    assert [reason for reason, _ in met] == ["truncated"]


def test_a_text_that_breaks_off_is_no_whole_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(ROWS)[:-8])
    assert problems(tmp_path / "a.txt.gz", documents="file") == ([], [("truncated", 20_001)])


def test_files_that_cannot_be_used_do_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "c.txt").write_bytes("ışık".encode("utf-16"))
    (tmp_path / "d.txt").write_text("good")
    read, met = problems(tmp_path)
    assert (read, met) == (["good"], [("empty", None), ("unreadable", None), ("encoding", 1)])
    assert problems(tmp_path / "vanished.txt") == ([], [("missing", None)])


def test_lines_and_documents_above_the_limit_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        f'{{"text": "a"}}\n{{"text": "{"x" * 90}"}}\n{{"text": "{"x" * 300}"}}\n{{"text": "b"}}\n'
    )
    assert problems(tmp_path / "a.jsonl", max_document_bytes=90) == (
        ["a", "b"],
        [("too-large", 2), ("too-large", 3)],
    )
    assert "larger than" in refused(tmp_path / "a.jsonl", max_document_bytes=90)
    path = tmp_path / "a.txt"
    path.write_text("a\n\n" + "line\n" * 30 + "x" * 99 + "\nend\n\nb\nc\n\n" + "x" * 300)
    large = "line\n" * 30 + "x" * 99 + "\nend"
    cut = {
        rule: problems(path, documents=rule, max_document_bytes=90) for rule in ("blank-line", "line", "file")
    }
    assert cut["blank-line"] == (["a", "b\nc"], [("too-large", 3), ("too-large", 39)])
    assert cut["line"] == (["a", *["line"] * 30, "end", "b", "c"], [("too-large", 33), ("too-large", 39)])
    assert cut["file"] == ([], [("too-large", 1)])
    assert texts(path, max_document_bytes=90) == [
        "a",
        large,
        "b\nc",
        "x" * 300,
    ]  # strictly, .txt may be large


def test_line_ends_are_found_wherever_a_piece_ends(tmp_path: Path) -> None:
    generator = random.Random(1)
    path = tmp_path / "a.txt"
    for _ in range(200):
        parts = generator.choices(["\n", "\r", "\r\n", "a", "ışık", "\u2028", "😀 "], k=60)
        path.write_bytes("".join(parts).encode())
        with path.open(encoding="utf-8") as file:  # Python's own universal line ends
            expected = [(number, line.rstrip("\n")) for number, line in enumerate(file, start=1)]
        assert list(read_lines(path, 70)) == [
            (number, line if len(line.encode()) < 70 else None) for number, line in expected
        ]


_PEAK = """
import resource, sys
from pathlib import Path
from mm_rec.sources.documents import read_documents
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
met = []
read = [document.text for document in read_documents([Path(sys.argv[1])], on_problem=met.append)]
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(read), [(problem.reason, problem.line) for problem in met], (after - before) // 1024)
"""


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv"])
def test_a_line_of_100_mb_is_passed_over_in_bounded_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    first, last = (b"text\n", b"a\n") if name == "a.csv" else (b'{"text": "a"}\n', b'{"text": "b"}\n')
    content = first + b"x" * 100_000_000 + b"\n" + last
    path.write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
    result = subprocess.run(
        [sys.executable, "-c", _PEAK, str(path)], check=True, capture_output=True, text=True
    )
    read, met, mib = re.fullmatch(r"(\d+) (\[.*\]) (\d+)\n", result.stdout).groups()  # type: ignore[union-attr]
    assert (read, met) == (("0", "[('too-large', 1)]") if name == "a.csv" else ("2", "[('too-large', 2)]"))
    assert int(mib) < 90  # the limit is 64 MiB
