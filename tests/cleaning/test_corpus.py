"""From messy files to a clean corpus: what stays, what goes, and that nothing depends on luck."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from turkish_prose import prose

from mm_rec.cleaning import shards
from mm_rec.cleaning.corpus import CleaningProgress, CorpusConfig, clean_corpus
from mm_rec.cleaning.report import write_report
from mm_rec.cleaning.steps import CleaningConfig
from mm_rec.errors import DataError
from mm_rec.sources.documents import read_documents

BOILERPLATE = (
    "Bu yazıyı beğendiyseniz dostlarınızla paylaşabilir, sorularınızı da her zaman bize yazabilirsiniz."
)


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """A folder of everything that goes wrong."""
    folder = tmp_path / "raw"
    folder.mkdir()
    rows = [prose(number) for number in range(30)]
    rows[3] = rows[2]  # an exact duplicate
    rows[5] = rows[4].replace("yine", "tekrar", 1)  # a near one
    rows[6] = f"{rows[6]}\n\n{BOILERPLATE}"
    rows[7] = f"{BOILERPLATE}\n\n{rows[7]}"
    rows[8] = "Kısa."
    rows[9] = "The cat sat on the mat and looked at all the people who were walking by. " * 8
    rows[10] = (
        f"---\ntitle: x\n---\n# Başlık\n\n{rows[10]}\n\nAna Sayfa > Haberler > Spor\n\nYazan: ali@ornek.com"
    )
    rows[11] = (
        f"{rows[11]} Sınav sorusu: Türkiye'nin en uzun nehri hangisidir ve bu nehir hangi denize dökülür acaba?"
    )
    lines = [json.dumps({"text": row}, ensure_ascii=False) for row in rows]
    lines.insert(12, "{ bozuk satır")
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "b.txt").write_text(prose(100), encoding="utf-8")
    (folder / "c.txt").write_bytes(prose(101).encode("cp1254"))
    (folder / "d.txt.gz").write_bytes(gzip.compress(prose(102).encode())[:-20])
    (folder / "e.txt").write_bytes(b"\x7fELF\0\0\0" * 100)
    (folder / "f.txt").write_bytes(b"")
    return folder


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    path = tmp_path / "eval.jsonl"
    path.write_text(
        json.dumps({"q": "Türkiye'nin en uzun nehri hangisidir ve bu nehir hangi denize dökülür acaba?"})
    )
    return path


def test_what_is_clean_stays_and_what_is_not_goes_with_its_reason(
    messy: Path, evaluation: Path, tmp_path: Path
):
    out = tmp_path / "corpus.txt.gz"
    corpus = clean_corpus(
        [messy], out, CorpusConfig(evaluation=[str(evaluation)]), processes=1, keep_dropped=True
    )
    dropped = {reason: removal.count for reason, removal in corpus.stats.dropped.items()}
    assert dropped == {
        "gopher_words": 1,
        "language": 1,
        "exact duplicate": 1,
        "near duplicate": 1,
        "evaluation text": 1,
    }
    assert {problem.reason for problem in corpus.problems} == {
        "not-json",
        "encoding",
        "truncated",
        "binary",
        "empty",
    }
    texts = [document.text for document in read_documents([out])]
    assert len(texts) == corpus.stats.total().kept.count == 26  # 30 + 1 − 5; half of d.txt.gz is no document
    whole = "\n".join(texts)
    assert whole.count(BOILERPLATE) == 1
    assert "title:" not in whole and "# Başlık" not in whole and "Haberler" not in whole
    assert "[EMAIL]" in whole and "ali@ornek.com" not in whole
    assert not (tmp_path / "corpus.txt.gz.work").exists()
    clusters = [json.loads(row) for row in (corpus.report / "clusters.jsonl").read_text().splitlines()]
    assert [(cluster["kept"][-9:], cluster["left_out"][0]["kind"]) for cluster in clusters] == [
        ("a.jsonl:3", "exact"),
        ("a.jsonl:6", "near"),
    ]
    kept = {document.text for document in read_documents([corpus.report / "dropped.jsonl.zst"])}
    assert "Kısa." in kept


def test_the_report_says_it_all(messy: Path, evaluation: Path, tmp_path: Path):
    config = CorpusConfig(evaluation=[str(evaluation)])
    corpus = clean_corpus([messy], tmp_path / "c.jsonl.zst", config, processes=1)
    page = write_report(corpus).read_text(encoding="utf-8")
    report = json.loads((corpus.report / "report.json").read_text(encoding="utf-8"))
    read, after, final = (stage["documents"] for stage in report["stages"])
    assert read - sum(removal["count"] for removal in report["dropped"].values()) == final
    assert after - final == report["duplicates"]["exact"] + report["duplicates"]["near"] == 2
    assert report["sources"][str(messy / "a.jsonl")]["read"]["count"] == 30
    assert report["other_languages"] == {"en": {"count": 1, "bytes": report["dropped"]["language"]["bytes"]}}
    assert len(report["problems"]) == 5
    for told in ("The cat sat on the mat", "gopher_words", "near duplicate", "c.txt", "<svg", "1 items of"):
        assert told in page
    card = (corpus.report / "README.md").read_text(encoding="utf-8")
    assert "| language | 1 |" in card and "LICENCE.md" in card


def test_the_page_in_a_browser(messy: Path, tmp_path: Path, browser: Browser):
    corpus = clean_corpus([messy], tmp_path / "c.txt.gz", CorpusConfig(), processes=1)
    page = browser.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda request: faults.append(request.url))
    page.goto(write_report(corpus).as_uri())
    bars = page.locator(".bar.kept").all()
    widths = [bar.bounding_box()["width"] for bar in bars]
    assert len(widths) == 3 and widths == sorted(widths, reverse=True) and widths[0] > 100
    page.locator("details:not([open])").evaluate_all("all => all.forEach(one => one.open = true)")
    assert page.get_by_text("The cat sat on the mat").first.is_visible()
    assert page.get_by_text("Number of words: at least").is_visible()
    assert page.locator("details", has_text="samples of what was kept").locator("pre").first.is_visible()
    curve = page.get_by_role("img", name="Detection curve").bounding_box()
    assert curve["width"] > 200 and curve["height"] > 80
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert faults == []
    page.close()


def test_tokens_are_counted_by_source_where_somebody_can_count_them(many: Path, tmp_path: Path):
    corpus = clean_corpus([many], tmp_path / "c.txt", CorpusConfig(), processes=1, count_tokens=len)
    write_report(corpus)
    report = json.loads((corpus.report / "report.json").read_text(encoding="utf-8"))
    counted = [flow["tokens"] for flow in report["sources"].values()]
    assert len(counted) == 3 and min(counted) > 0
    text = (tmp_path / "c.txt").read_text(encoding="utf-8").replace("\n\n", "\n")
    assert report["total"]["tokens"] == sum(counted) >= len(text) - 2 * text.count("\n")


def test_text_in_the_report_is_text_and_no_markup(tmp_path: Path):
    (tmp_path / "a.txt").write_text(f"<b onclick='x()'>{prose(1)} <script>alert(1)", encoding="utf-8")
    (tmp_path / "b.txt").write_text("x < y & <script>alert(2)", encoding="utf-8")
    corpus = clean_corpus(
        [tmp_path / "a.txt", tmp_path / "b.txt"],
        tmp_path / "c.txt",
        CorpusConfig(cleaning=CleaningConfig(markup=False)),
        processes=1,
    )
    assert "<script>" not in write_report(corpus).read_text(encoding="utf-8")


def run(folder: Path, out: Path, processes: int) -> dict[str, bytes]:
    corpus = clean_corpus([folder], out, CorpusConfig(), processes=processes, keep_dropped=True)
    return files(out, corpus.report)


def files(out: Path, report: Path) -> dict[str, bytes]:
    names = ("clusters.jsonl", "fingerprints.npz", "dropped.jsonl.zst")
    return {"corpus": out.read_bytes(), **{name: (report / name).read_bytes() for name in names}}


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Text for several shards, with duplicates between them."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(3):
        with (folder / f"{number}.jsonl").open("w", encoding="utf-8") as file:
            for row in range(60):
                seed = row if row % 7 == 0 else 1000 * number + row
                file.write(
                    json.dumps({"text": prose(seed) + f"\n\n{BOILERPLATE}"}, ensure_ascii=False) + "\n"
                )
    return folder


def test_the_files_do_not_depend_on_the_number_of_processes(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mm_rec.cleaning.shards.SHARD_BYTES", 20_000)
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    assert run(many, tmp_path / "x" / "c.txt.gz", 1) == run(many, tmp_path / "y" / "c.txt.gz", 2)


CHILD = """
import sys
from mm_rec.cleaning import shards
from mm_rec.cleaning import shards
from mm_rec.cleaning.corpus import CorpusConfig, CleaningProgress, clean_corpus
shards.SHARD_BYTES = 20_000
clean_corpus([sys.argv[1]], __import__("pathlib").Path(sys.argv[2]), CorpusConfig(), processes=1, keep_dropped=True,
             progress=CleaningProgress(advance=lambda size: print("done", flush=True)))
"""


def test_a_killed_call_goes_on_and_ends_the_same(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mm_rec.cleaning.shards.SHARD_BYTES", 20_000)
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    expected = run(many, tmp_path / "x" / "c.txt.gz", 1)
    out = tmp_path / "y" / "c.txt.gz"
    command = [sys.executable, "-c", CHILD, str(many), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as child:
        try:
            assert child.stdout is not None
            for _ in range(3):
                assert child.stdout.readline() == "done\n"
        finally:
            os.killpg(child.pid, signal.SIGKILL)
    assert not out.exists()
    work = out.with_name("c.txt.gz.work")
    finished = {path.name: path.stat().st_mtime_ns for path in work.glob("*.json")}
    assert len(finished) >= 3
    seen: dict[str, int] = {}

    def look(name: str, size: int) -> None:
        if name == "looking for duplicates":
            seen.update({path.name: path.stat().st_mtime_ns for path in work.glob("*.json")})

    corpus = clean_corpus(
        [many], out, CorpusConfig(), processes=1, keep_dropped=True, progress=CleaningProgress(stage=look)
    )
    assert files(out, corpus.report) == expected
    assert {name: seen[name] for name in finished} == finished  # finished shards were not made again


def test_a_full_disk_is_said_and_the_next_call_goes_on(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mm_rec.cleaning.shards.SHARD_BYTES", 20_000)
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    out, whole = tmp_path / "x" / "c.txt.gz", shards.atomic_path

    @contextlib.contextmanager
    def fills(path: Path) -> Iterator[Path]:
        with whole(path) as temporary:
            if path.name.startswith("00002"):
                temporary.symlink_to("/dev/full")
            yield temporary

    with monkeypatch.context() as full:
        full.setattr(shards, "atomic_path", fills)
        with pytest.raises(DataError, match="disk is full"):
            clean_corpus([many], out, CorpusConfig(), processes=1)
    assert not out.exists()
    assert len(list(out.with_name("c.txt.gz.work").glob("*.json"))) == 2
    assert run(many, out, 1) == run(many, tmp_path / "y" / "c.txt.gz", 1)


def test_other_settings_make_the_shards_again(many: Path, tmp_path: Path):
    out = tmp_path / "c.txt"
    strict = CorpusConfig(cleaning=CleaningConfig(rules={"gopher_words": {"min": 100_000}}))
    with pytest.raises(DataError, match=r"no document is left of 180.*gopher_words \(180\)"):
        clean_corpus([many], out, strict, processes=1)
    assert clean_corpus([many], out, CorpusConfig(), processes=1).stats.total().kept.count > 100


def test_an_earlier_corpus_is_not_repeated(many: Path, tmp_path: Path):
    first = clean_corpus([many / "0.jsonl"], tmp_path / "a.txt", CorpusConfig(), processes=1)
    again = CorpusConfig(earlier=[str(first.report)])
    with pytest.raises(DataError, match="nothing is left"):
        clean_corpus([many / "0.jsonl"], tmp_path / "b.txt", again, processes=1)
    alone = clean_corpus([many / "1.jsonl"], tmp_path / "c.txt", CorpusConfig(), processes=1)
    beside = clean_corpus([many / "1.jsonl"], tmp_path / "d.txt", again, processes=1)
    assert alone.stats.total().kept.count - beside.stats.total().kept.count == 9  # rows 0, 7, 14 … are shared
    assert BOILERPLATE not in (tmp_path / "d.txt").read_text(encoding="utf-8")


def test_repeated_paragraphs_stay_where_they_are_not_looked_for(many: Path, tmp_path: Path):
    config = CorpusConfig.read({"dedup": {"paragraphs": False}})
    corpus = clean_corpus([many / "1.jsonl"], tmp_path / "a.txt", config, processes=1)
    text = (tmp_path / "a.txt").read_text(encoding="utf-8")
    assert text.count(BOILERPLATE) == corpus.stats.total().kept.count > 1


def test_bad_names_are_said_before_anything_is_read(many: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"\.txt\.gz"):
        clean_corpus([many], tmp_path / "out.parquet", CorpusConfig())
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DataError, match="this is a folder"):
        clean_corpus([many], tmp_path / "folder.txt", CorpusConfig())
    with pytest.raises(DataError, match="Clean that corpus again"):
        clean_corpus([many], tmp_path / "c.txt", CorpusConfig(earlier=[str(tmp_path)]))


def test_the_command_prints_what_happened(many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from mm_rec.cli.main import run as mmrec

    command = [
        "data",
        "clean",
        str(many),
        "--out",
        str(tmp_path / "c.txt.gz"),
        "--language",
        "tr",
        "--processes",
        "1",
    ]
    (tmp_path / "bad.txt").write_text("zeynep\n", encoding="utf-8")
    assert mmrec([*command, "--set", "dedup.near=false", "--bad-words", str(tmp_path / "bad.txt")]) == 0
    told = capsys.readouterr().out
    assert "bad words" in told
    with gzip.open(tmp_path / "c.txt.gz", "rt", encoding="utf-8") as corpus:
        assert "Zeynep" not in corpus.read()
    assert (
        "exact duplicate" in told and "near duplicate" not in told and "report.html" in told.replace("\n", "")
    )
    assert mmrec(command) == 2
    assert "--overwrite to replace it" in capsys.readouterr().err.replace("\n", " ")
    assert mmrec([*command, "--overwrite"]) == 0
    assert "exact duplicate" in capsys.readouterr().out
    (tmp_path / "bad.txt").write_bytes("çirkin\n".encode("cp1254"))
    assert mmrec([*command, "--overwrite", "--bad-words", str(tmp_path / "bad.txt")]) == 2
    assert "bad.txt:1:" in (told := capsys.readouterr().err) and "is not UTF-8" in told
    assert mmrec([*command, "--set", "dedup.nearr=false"]) == 2
    assert "did you mean 'near'" in capsys.readouterr().err.replace("\n", " ")


def test_second_dots_on_i_are_mended_and_counted(tmp_path: Path):
    (tmp_path / "a.txt").write_text(prose(1).replace("İ", "i").replace("i", "i\u0307", 7), encoding="utf-8")
    corpus = clean_corpus([tmp_path / "a.txt"], tmp_path / "o.txt", CorpusConfig(), processes=1)
    assert "\u0307" not in (tmp_path / "o.txt").read_text(encoding="utf-8")
    reason = "second dot on an i (İ in small letters without a language)"
    assert (corpus.stats.cut[reason].count, corpus.stats.cut[reason].bytes) == (7, 14)
