from __future__ import annotations

import json
from pathlib import Path

import pytest

from mm_rec.cleaning.contamination import EvaluationIndex, EvaluationItem, evaluation_items
from mm_rec.errors import DataError

QUESTION = "Işık hızının yaklaşık üç yüz bin kilometre olduğunu ilk kez hangi bilim insanı hesapladı?"
SHORT = "İzmir'de bugün hava çok güzel olacak."


def index(*texts: str, n: int = 13) -> EvaluationIndex:
    return EvaluationIndex.build(
        [EvaluationItem(text, f"set:{number}") for number, text in enumerate(texts)], "tr", n
    )


def found(text: str, *items: str, n: int = 13) -> list[str]:
    return [item.location for item in index(*items, n=n).find(text)]


def test_an_item_is_found_through_case_punctuation_and_unicode_form():
    for form in (
        QUESTION,
        QUESTION.replace("i", "İ").upper(),
        QUESTION.replace(" ", "  \n"),
        f"«{QUESTION}» -- diye",
    ):
        assert found(f"Sınavda soruldu: {form} Kimse bilemedi.", QUESTION) == ["set:0"]


def test_thirteen_words_in_a_row_are_enough_and_twelve_are_not():
    words = QUESTION.split()
    assert len(words) == 14
    assert found(" ".join(words[:13]), QUESTION) == ["set:0"]
    assert found(" ".join(words[:12]), QUESTION) == []
    assert found(" ".join(words[:12]), QUESTION, n=8) == ["set:0"]


def test_a_shorter_item_must_stand_there_whole_and_a_very_short_one_is_not_looked_for():
    assert found(f"Dedi ki {SHORT} Sonra sustu.", SHORT) == ["set:0"]
    assert found(SHORT.replace("çok ", ""), SHORT) == []
    assert found("Evet, doğru.", "Evet, doğru.") == []
    assert index("Evet, doğru.").skipped == 1


def test_words_that_differ_in_a_letter_are_no_match():
    assert found(QUESTION.replace("kilometre", "kılometre"), QUESTION) == []


def test_several_items_are_named_in_their_order_and_an_empty_index_finds_nothing():
    assert found(f"{SHORT} {QUESTION}", QUESTION, SHORT) == ["set:0", "set:1"]
    assert found(QUESTION) == []
    assert found("", QUESTION) == []


def test_items_are_all_strings_of_the_usual_kinds_of_file(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"q": "soru", "choices": ["a", "b"], "label": 1}) + "\n\n")
    (tmp_path / "b.json").write_text(json.dumps({"data": [{"p": {"q": "derin"}}]}))
    (tmp_path / "c.json").write_text('{"q": "bir"}\n{"q": "iki"}\n')
    (tmp_path / "d.csv").write_text('x,"y\nz"\n')
    (tmp_path / "e.txt").write_text("satır\n")
    (tmp_path / "f.png").write_bytes(b"\x89PNG")
    items = [(Path(item.location).name, item.text.strip()) for item in evaluation_items([tmp_path])]
    assert items == [
        ("a.jsonl:1", "soru"), ("a.jsonl:1", "a"), ("a.jsonl:1", "b"), ("b.json:1", "derin"), ("c.json:1", "bir"),
        ("c.json:2", "iki"), ("d.csv:1", "x"), ("d.csv:1", "y\nz"), ("e.txt:1", "satır"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"q": 1}\n{"q"', r"a\.jsonl:2: .*cannot be read"),
        ("b.txt", b"\xff\xfe", "cannot be read"),
        ("c.png", b"", r"\.jsonl, \.json"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(evaluation_items([tmp_path / name]))


def test_the_share_of_an_item_that_stands_in_the_text_is_that_of_its_runs():
    words = [f"söz{number}" for number in range(40)]  # 28 runs of 13 words
    made = index(" ".join(words), SHORT, QUESTION)
    shares = made.found_shares([" ".join(words[:20]), f"x {SHORT} y", " ".join(words[10:23])])
    assert shares.tolist() == [pytest.approx(9 / 28), 1.0, 0.0]
    assert made.found_shares([]).tolist() == [0, 0, 0]
