"""The Turkish text that the data benchmarks read: MMREC_TEST_DATA, by default ../shared/data."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

FILES = ("msdocs_dynamics365", "daron_blog", "laws", "msdocs_visualstudio_mt", "msdocs_powerbi")


def folder() -> Path:
    """The folder of real test data; ends the program where it is absent."""
    found = Path(__file__).resolve().parent.parent / os.environ.get("MMREC_TEST_DATA", "../shared/data")
    if not found.is_dir():
        sys.exit(f"{found} is absent; set MMREC_TEST_DATA to the folder of real test data")
    return found


def read_texts(path: Path) -> list[str]:
    """The texts of a file of rows."""
    with path.open(encoding="utf-8") as rows:
        return [json.loads(row)["text"] for row in rows]


def turkish_documents(megabytes: float) -> list[str]:
    """Whole documents in equal shares from each file, `megabytes` of UTF-8 in all."""
    turkish = folder() / "tr"
    documents: list[str] = []
    for name in FILES:
        left = megabytes * 1e6 / len(FILES)
        with (turkish / f"{name}.jsonl").open(encoding="utf-8") as rows:
            for row in rows:
                if left <= 0:
                    break
                documents.append(json.loads(row)["text"])
                left -= len(documents[-1].encode())
    return documents


def size_mb(documents: list[str]) -> float:
    """Megabytes of UTF-8."""
    return sum(len(text.encode()) for text in documents) / 1e6


def require_datatrove() -> None:
    """End with a hint where the peer is not installed."""
    try:
        import datatrove  # noqa: F401
        import spacy  # noqa: F401
    except ImportError:
        sys.exit("datatrove and spacy are the peers here: pip install 'mm-rec[bench]' (make bench does it)")
