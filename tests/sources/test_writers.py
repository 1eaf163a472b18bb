from __future__ import annotations

from pathlib import Path

import pytest

from mm_rec.errors import DataError
from mm_rec.sources.documents import read_documents
from mm_rec.sources.writers import SUFFIXES, document_writer, row_writer

TEXTS = ["Bir satır.\nİki satır.", "Önce.\n\n \n\nSonra.", "Şu\r\n\r\nbu\r\ro.", "Son: ğüşıöç “tırnak” 🌿"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read_back_as_the_same_documents(suffix: str, tmp_path: Path):
    path = tmp_path / f"a{suffix}"
    with document_writer(path) as write:
        for text in TEXTS:
            write(text)
    read = [document.text for document in read_documents([path])]
    if ".jsonl" in suffix:
        assert read == TEXTS
    else:  # blank lines divide documents there, so inside them they are plain line ends
        assert read == ["Bir satır.\nİki satır.", "Önce.\nSonra.", "Şu\nbu\no.", TEXTS[3]]


@pytest.mark.parametrize("suffix", [".txt.gz", ".jsonl.zst"])
def test_the_same_documents_give_the_same_bytes_under_any_name_and_at_any_time(suffix: str, tmp_path: Path):
    for name in ("a", "b"):
        with document_writer(tmp_path / f"{name}{suffix}") as write:
            for text in TEXTS:
                write(text)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_what_fails_leaves_no_file(tmp_path: Path):
    def fail() -> None:
        with row_writer(tmp_path / "a.jsonl") as write:
            write({"text": "x"})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_says_no_format_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"\.jsonl\.zst"), document_writer(tmp_path / "a.csv"):
        pass
