from __future__ import annotations

import json
from pathlib import Path

import pytest
from turkish_prose import prose

from mm_rec.data.prepare import plan_sources
from mm_rec.data.sections import DataSection
from mm_rec.errors import DataError
from mm_rec.pipeline.contamination import check_contamination

ITEM = "Türkiye'nin en uzun nehri hangisidir ve bu nehir hangi denize dökülür, bunu bilen var mı acaba?"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    rows = [prose(seed) for seed in range(20)]
    rows[7] = f"{rows[7]} {ITEM.replace('i', 'İ').upper()}"
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def check(text: Path, **settings: object) -> list[str]:
    said: list[str] = []
    data = DataSection.read({"sources": [str(text)], **settings})
    plan = plan_sources([text], validation_sources=data.validation)
    check_contamination(data, {"text": plan}, said.append)
    return said


def benchmark(folder: Path, item: str) -> list[str]:
    (folder / "bench.jsonl").write_text(json.dumps({"question": item, "answer": "Evet."}))
    return [str(folder / "bench.jsonl")]


def test_training_on_a_benchmark_is_refused_with_the_place_and_the_remedy(text: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"1 of 1 benchmark items .*bench\.jsonl:1.*--evaluation .* warn"):
        check(text, benchmarks=benchmark(tmp_path, ITEM))


def test_on_request_it_is_only_said_or_not_looked_for(text: Path, tmp_path: Path):
    items = benchmark(tmp_path, ITEM)
    (said,) = check(text, benchmarks=items, contamination="warn")
    assert said.startswith("warning: 1 of 1 benchmark items")
    assert check(text, benchmarks=items, contamination="off") == []


def test_other_items_pass_and_that_is_said(text: Path, tmp_path: Path):
    items = benchmark(tmp_path, ITEM.replace("nehri", "gölü").replace("hangi denize", "kaç metre"))
    assert check(text, benchmarks=items) == ["none of 1 benchmark items stands in the training text"]


def test_a_validation_file_that_nearly_repeats_training_text_is_refused_and_a_shared_footer_is_not(
    text: Path, tmp_path: Path
):
    held = tmp_path / "held.txt"
    held.write_text(prose(3).replace("yine", "tekrar") + " Sonra eve döndü.")
    with pytest.raises(DataError, match=r"1 of 1 validation documents"):
        check(text, validation=[str(held)])
    held.write_text(prose(100) + " " + prose(3, sentences=2))
    assert check(text, validation=[str(held)]) == [
        "none of 1 validation documents stands in the training text"
    ]


def test_a_run_is_refused_before_its_first_step(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    from mm_rec.cli.main import run as mmrec

    monkeypatch.chdir(tmp_path)
    items = benchmark(tmp_path, ITEM)
    assert mmrec(["pretrain", str(text), "--set", f"pretrain.data.benchmarks=[{items[0]}]"]) == 2
    assert "benchmark items" in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*/tokenizer"))
