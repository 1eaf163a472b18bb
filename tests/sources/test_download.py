"""Downloads of local copies: the same path as from the hub but for the place that `datasets` is given."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import zstandard
from typer.testing import CliRunner

from mm_rec.cli import data_download
from mm_rec.errors import ConfigError, DataError, UserError
from mm_rec.sources import download as downloading
from mm_rec.sources.catalogue import find_source, load_catalogue
from mm_rec.sources.documents import read_documents
from mm_rec.sources.download import DownloadRecord, DownloadRequest, download, parse_size

CARD = """---
configs:
- config_name: 20231101.tr
  data_files:
  - split: train
    path: 20231101.tr/train-*
  - split: test
    path: 20231101.tr/test-*
---
"""
TEXTS = [f"{number}. belge\n\nİkinci paragraf, ışık ve ağaç. " * (1 + number % 7) for number in range(300)]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "SHARD_BYTES", 6_000)
    monkeypatch.setattr(downloading, "_PROGRESS_BYTES", 500)


def write_wikipedia(folder: Path) -> Path:
    """A copy of a repository with its card: three files of train, one of test."""
    part = folder / "20231101.tr"
    part.mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    for number in range(3):
        texts = TEXTS[number * 100 : number * 100 + 100]
        table = pa.table({"id": [str(i) for i in range(100)], "text": texts})
        pq.write_table(table, part / f"train-{number}.parquet", row_group_size=30)
    pq.write_table(pa.table({"id": ["0"], "text": ["deneme"]}), part / "test-0.parquet")
    return folder


def write_wikitext(folder: Path) -> Path:
    """Lines as WikiText has them; each article has a title of level one and a section."""
    lines = []
    for number in range(200):
        body = f"Paragraph {number} with = signs = in it . " * (1 + number % 5)
        lines += ["", f" = Article {number} = \n", "", f" {body}\n", " = = Section = = \n", " More text . \n"]
    folder.mkdir()
    pq.write_table(pa.table({"text": lines}), folder / "train-0.parquet", row_group_size=50)
    return folder


def write_cc100(folder: Path) -> Path:
    folder.mkdir()
    (folder / "tr.txt.xz").write_bytes(
        lzma.compress("".join(text.replace("\n\n", "\n") + "\n\n" for text in TEXTS).encode())
    )
    return folder


def write_oscar(folder: Path) -> Path:
    """Two files whose rows have metadata of different shape, a blank document and a damaged line."""
    rows = [
        json.dumps({"id": i, "content": text, "metadata": {"tags": None}}) for i, text in enumerate(TEXTS)
    ]
    rows[7] = '{"id": 7, "content": '
    rows[8] = json.dumps({"id": 8, "content": " \n", "metadata": {"tags": ["short"]}})
    rows[9] = '{"id": 9, "content": "yarım \\ud83d", "metadata": 3}'
    part = folder / "tr_meta"
    part.mkdir(parents=True)
    for number, some in enumerate((rows[:150], rows[150:])):
        packed = zstandard.compress("".join(row + "\n" for row in some).encode())
        (part / f"tr_meta_part_{number + 1}.jsonl.zst").write_bytes(packed)
    return folder


COPIES: dict[str, Callable[[Path], Path]] = {
    "wikipedia": write_wikipedia,
    "wikitext-2": write_wikitext,
    "cc100-tr": write_cc100,
    "oscar": write_oscar,
}


def request(name: str, folder: Path, out: Path, **options: Any) -> DownloadRequest:
    language = "tr" if name == "wikipedia" else None
    return DownloadRequest(
        **{"source": find_source(name), "local": folder, "out": out, "language": language, **options}
    )


def texts(out: Path) -> list[str]:
    """The documents of all shards in their order."""
    found = []
    for path in sorted(out.glob("*.jsonl.zst")):
        with zstandard.open(path, "rt", encoding="utf-8") as lines:
            found += [json.loads(line)["text"] for line in lines]
    return found


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != downloading.RECORD}


def test_a_part_and_a_split_of_a_copy_with_its_card(tmp_path: Path) -> None:
    copy = write_wikipedia(tmp_path / "copy")
    record = download(request("wikipedia", copy, tmp_path / "out"))
    assert record.complete and len(record.shards) > 3
    assert texts(tmp_path / "out") == TEXTS
    assert record.documents == 300 and record.text_bytes == sum(len(text.encode()) for text in TEXTS)
    assert [shard.rows for shard in record.shards][-1] == 300
    assert json.loads((tmp_path / "out" / "download.json").read_text())["wanted"]["language"] == "tr"
    download(request("wikipedia", copy, tmp_path / "test", split="test"))
    assert texts(tmp_path / "test") == ["deneme"]


def test_the_licence_stands_beside_the_text(tmp_path: Path) -> None:
    download(request("wikitext-2", write_wikitext(tmp_path / "copy"), tmp_path / "out"))
    licence = (tmp_path / "out" / "LICENCE.md").read_text()
    for part in (
        "CC BY-SA 3.0 and GFDL",
        "https://huggingface.co/datasets/Salesforce/wikitext",
        "Cite: Merity",
    ):
        assert part in licence


def test_a_folder_without_the_card_is_one_set(tmp_path: Path) -> None:
    copy = write_wikipedia(tmp_path / "copy")
    (copy / "README.md").unlink()
    download(request("wikipedia", copy, tmp_path / "out"))
    assert texts(tmp_path / "out") == TEXTS


def test_lines_of_wikitext_become_articles(tmp_path: Path) -> None:
    download(request("wikitext-2", write_wikitext(tmp_path / "copy"), tmp_path / "out"))
    found = texts(tmp_path / "out")
    assert len(found) == 200
    assert all(text.startswith(f" = Article {number} = \n") for number, text in enumerate(found))
    assert all(text.endswith(" = = Section = = \n More text . \n") for text in found)


def test_paragraphs_of_an_xz_file(tmp_path: Path) -> None:
    download(request("cc100-tr", write_cc100(tmp_path / "copy"), tmp_path / "out"))
    assert texts(tmp_path / "out") == [text.replace("\n\n", "\n") for text in TEXTS]


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    record = download(request("oscar", write_oscar(tmp_path / "copy"), tmp_path / "out"))
    assert texts(tmp_path / "out") == TEXTS[:7] + TEXTS[10:]
    assert (record.empty_rows, record.unreadable_rows) == (1, 2)


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("stops", [(1,), (9, 4, 17)])
def test_a_stopped_download_gives_the_same_files(tmp_path: Path, name: str, stops: tuple[int, ...]) -> None:
    """Stopped inside shards, after the 1st and after several of the calls that report progress."""
    copy = COPIES[name](tmp_path / "copy")
    whole = download(request(name, copy, tmp_path / "whole"))
    for stop in stops:
        calls = iter(range(stop))

        def stopping(text_bytes: int, rows: int, calls: Any = calls) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            download(request(name, copy, tmp_path / "out"), stopping)
        (tmp_path / "out" / ".wikipedia-00000.jsonl.zst.1-1.tmp").touch()  # as a killed process leaves it
    record = download(request(name, copy, tmp_path / "out"))
    assert shards(tmp_path / "out") == shards(tmp_path / "whole")
    assert record.shards == whole.shards and record.unreadable_rows == whole.unreadable_rows


@pytest.mark.parametrize("name", COPIES)
def test_killed_between_a_shard_and_its_record(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = COPIES[name](tmp_path / "copy")
    download(request(name, copy, tmp_path / "whole"))
    saved: list[DownloadRecord] = []
    save = downloading._save

    def dying(wanted: DownloadRequest, record: DownloadRecord, stream: Any) -> None:
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(record)
        save(wanted, record, stream)

    monkeypatch.setattr(downloading, "_save", dying)
    with pytest.raises(KeyboardInterrupt):
        download(request(name, copy, tmp_path / "out"))
    monkeypatch.setattr(downloading, "_save", save)
    assert len(list((tmp_path / "out").glob("*.zst"))) == 3
    download(request(name, copy, tmp_path / "out"))
    assert shards(tmp_path / "out") == shards(tmp_path / "whole")


@pytest.mark.parametrize("name", COPIES)
def test_a_limit_and_then_a_higher_one(tmp_path: Path, name: str) -> None:
    copy = COPIES[name](tmp_path / "copy")
    download(request(name, copy, tmp_path / "whole"))
    record = download(request(name, copy, tmp_path / "out", limit=7_000))
    longest = max(len(text.encode()) for text in texts(tmp_path / "whole"))
    assert 7_000 <= record.text_bytes < 7_000 + longest and not record.complete
    assert download(request(name, copy, tmp_path / "out", limit=7_000)) == record
    assert texts(tmp_path / "out") == texts(tmp_path / "whole")[: record.documents]
    download(request(name, copy, tmp_path / "out", limit=9_000))
    assert download(request(name, copy, tmp_path / "out")).complete
    assert texts(tmp_path / "out") == texts(tmp_path / "whole")


def test_txt_gz_reads_back_with_one_document_between_blank_lines(tmp_path: Path) -> None:
    copy = write_wikipedia(tmp_path / "copy")
    record = download(request("wikipedia", copy, tmp_path / "out", format="txt.gz"))
    found = [document.text for document in read_documents([tmp_path / "out"], documents="blank-line")]
    assert len(found) == record.documents == 300
    assert found[0] == "0. belge\nİkinci paragraf, ışık ve ağaç."


def test_chat_rows_are_kept_whole_as_json(tmp_path: Path) -> None:
    rows = [{"instruction": "Say", "input": "", "output": f"ş{number}", "more": 1} for number in range(5)]
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "data.json").write_text(json.dumps(rows))
    record = download(request("alpaca-tr", tmp_path / "copy", tmp_path / "out"))
    with zstandard.open(tmp_path / "out" / record.shards[0].file, "rt", encoding="utf-8") as lines:
        assert [json.loads(line) for line in lines] == rows
    with pytest.raises(ConfigError, match="instruction, input, output, which are kept as JSON"):
        download(request("alpaca-tr", tmp_path / "copy", tmp_path / "text", format="txt.gz"))


def test_a_json_array_of_conversations(tmp_path: Path) -> None:
    rows = [{"id": "a", "conversations": [{"from": "human", "value": "Merhaba"}]}]
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "ShareGPT_V3_unfiltered_cleaned_split.json").write_text(json.dumps(rows, indent=1))
    assert download(request("sharegpt", tmp_path / "copy", tmp_path / "out")).documents == 1


def _refused(message: str, wanted: DownloadRequest) -> str:
    with pytest.raises(UserError, match=message) as caught:
        download(wanted)
    return str(caught.value)


def test_a_copy_that_is_no_copy_of_the_set(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    pq.write_table(pa.table({"content": ["x"], "n": [1]}), tmp_path / "other" / "a.parquet")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "a.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "blank").mkdir()
    pq.write_table(pa.table({"text": ["", " "]}), tmp_path / "blank" / "a.parquet")
    (tmp_path / "numbers").mkdir()
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "numbers" / "a.parquet")
    _refused("no such folder", request("wikipedia", tmp_path / "none", out))
    _refused("EmptyDatasetError", request("wikipedia", tmp_path / "empty", out))
    _refused("no file here is called tr.txt.xz", request("cc100-tr", tmp_path / "empty", out))
    _refused(
        "row 1 has no field 'text'; it has: 'content', 'n'", request("wikipedia", tmp_path / "other", out)
    )
    assert "damaged" in _refused("reading .* failed", request("wikipedia", tmp_path / "damaged", out))
    _refused("field 'text' is not a text but '1'", request("wikipedia", tmp_path / "numbers", out))
    _refused("no text: 2 rows were read", request("wikipedia", tmp_path / "blank", out))
    assert not list(out.glob("*.zst")) and not list(out.glob(".*.tmp"))


def test_a_part_or_a_split_that_is_not_there(tmp_path: Path) -> None:
    copy = write_wikipedia(tmp_path / "copy")
    _refused(
        "no part called '20231101.az'.*20231101.tr.*--language",
        request("wikipedia", copy, tmp_path / "out", language="az"),
    )
    _refused("no split 'dev'.*train.*--split", request("wikipedia", copy, tmp_path / "out", split="dev"))
    _refused(
        "one split, 'train'",
        request("oscar", write_oscar(tmp_path / "oscar"), tmp_path / "out", split="test"),
    )


def test_a_compressed_file_that_is_cut_short_keeps_what_was_finished(tmp_path: Path) -> None:
    copy = write_oscar(tmp_path / "copy")
    second = copy / "tr_meta" / "tr_meta_part_2.jsonl.zst"
    whole = second.read_bytes()
    second.write_bytes(b"not compressed at all")
    message = _refused("reading .* failed", request("oscar", copy, tmp_path / "out"))
    assert "after row 150; the finished shards stay, the same command goes on" in message
    assert list((tmp_path / "out").glob("*.zst"))
    second.write_bytes(whole)
    assert download(request("oscar", copy, tmp_path / "out")).complete
    assert texts(tmp_path / "out") == TEXTS[:7] + TEXTS[10:]


def test_a_folder_that_holds_another_download(tmp_path: Path) -> None:
    copy, out = write_wikipedia(tmp_path / "copy"), tmp_path / "out"
    record = download(request("wikipedia", copy, out, limit=7_000))
    _refused("holds a download with set 'wikipedia', not 'oscar'", request("oscar", copy, out))
    _refused("format 'jsonl.zst', not 'txt.gz'", request("wikipedia", copy, out, format="txt.gz"))
    (out / record.shards[0].file).unlink()
    _refused(r"wikipedia-00000.jsonl.zst: a finished shard is missing", request("wikipedia", copy, out))
    (out / "download.json").write_text("{}")
    _refused("not the record of a download", request("wikipedia", copy, out))


def test_offline_without_a_copy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be reached.*HF_HUB_OFFLINE.*--local PATH.*HF_ENDPOINT"):
        download(DownloadRequest(find_source("wikitext-2"), tmp_path / "out"))


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("500 mb", 5 * 10**8), ("1.5KB", 1500), ("7b", 7)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "2", "GB", "-1GB", "0MB", "2GiB", "1,5GB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="500MB or 2GB"):
        parse_size(text)


@pytest.fixture
def run() -> Callable[..., Any]:
    app = typer.Typer()
    app.command()(data_download.sources)
    app.command()(data_download.download)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_commands(tmp_path: Path, run: Callable[..., Any]) -> None:
    listed = run("sources", "--language", "tr").output
    assert "fineweb-2" in listed and "oscar *" in listed and "openwebtext" not in listed
    assert "mmrec data download NAME" in listed
    entries = json.loads(run("sources", "--json").output)
    assert {"name", "hub", "licence", "size_gb"} <= set(entries[0]) and len(entries) == len(load_catalogue())
    copy = write_wikipedia(tmp_path / "copy")
    done = run(
        "download",
        "wikipedia",
        "--language",
        "tr",
        "--local",
        copy,
        "--out",
        tmp_path / "out",
        "--limit",
        "7KB",
    )
    assert done.exit_code == 0, done.output
    assert "the limit was reached; a higher --limit continues" in done.output and "CC BY-SA" in done.output
    done = run("download", "wikipedia", "--language", "tr", "--local", copy, "--out", tmp_path / "out")
    assert "300 documents" in done.output and "this is the whole set" in done.output


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: Any) -> DownloadRecord:
        raise KeyboardInterrupt

    monkeypatch.setattr(downloading, "download", stopped)
    done = run("download", "wikitext-2", "--out", tmp_path / "out")
    assert done.exit_code == 130 and "the same command continues after them" in done.output
