"""Minimal pairs: what is read, and scores against models whose likelihoods can be worked out otherwise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.cli.evaluate.pairs import evaluate_pairs
from mm_rec.errors import DataError
from mm_rec.evaluation.minimal_pairs import MinimalPair, read_pairs, score_pairs
from mm_rec.sources.problems import Problem

BLIMP = [
    {
        "sentence_good": "She sees the stars.",
        "sentence_bad": "She see the stars.",
        "UID": "agreement",
        "pairID": "0",
    },
    {
        "sentence_good": "The girls see her.",
        "sentence_bad": "The girls sees her.",
        "UID": "agreement",
        "pairID": "1",
    },
]
TURBLIMP = """\
good_sentence;bad_sentence;good_cue;bad_cue;critical_region;phenomenon
Küçük çocuk oturdu.;Küçük çocuk oturdular.;oturdu;oturdular;-;uyum
Yıldızları görüyor.;Yıldızları görüyor.;görüyor;görüyor;-;uyum
"""
XCOPA = [
    {
        "premise": "Adam musluğu açtı.",
        "choice1": "İhtiyar balıkçı geldi.",
        "choice2": "Irmak aktı.",
        "question": "effect",
        "label": 1,
    },
    {"premise": "Kız ağladı.", "choice1": "Düştü.", "choice2": "Güldü.", "question": "cause", "label": 0},
]


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pairs"
    write_rows(folder / "blimp" / "agreement.jsonl", BLIMP)
    write_rows(folder / "blimp" / "models_summary.jsonl", [{"UID": "agreement", "gpt2": 0.9}])
    (folder / "blimp" / "human.csv").write_text('"Condition","mean"\n"agreement",0.9\n', encoding="utf-8")
    (folder / "README.txt").write_text("Cümle çiftleri.\n", encoding="utf-8")
    (folder / "turblimp").mkdir()
    (folder / "turblimp" / "augmented_uyum.csv").write_text(TURBLIMP, encoding="utf-8")
    write_rows(folder / "xcopa_tr.jsonl", XCOPA)
    return folder


def test_a_folder_of_all_kinds_is_read_and_other_files_are_passed_over(folder: Path) -> None:
    assert read_pairs([folder]) == [
        MinimalPair("BLiMP", "agreement", "", "She sees the stars.", "She see the stars."),
        MinimalPair("BLiMP", "agreement", "", "The girls see her.", "The girls sees her."),
        MinimalPair("TurBLiMP", "uyum", "", "Küçük çocuk oturdu.", "Küçük çocuk oturdular."),
        MinimalPair("TurBLiMP", "uyum", "", "Yıldızları görüyor.", "Yıldızları görüyor."),
        MinimalPair(
            "XCOPA",
            "xcopa_tr",
            "Adam musluğu açtı bu yüzden",
            " ırmak aktı.",
            " ihtiyar balıkçı geldi.",
        ),
        MinimalPair("XCOPA", "xcopa_tr", "Kız ağladı çünkü", " düştü.", " güldü."),
    ]


def test_english_causes_and_effects_have_english_connectors(tmp_path: Path) -> None:
    rows = [
        {"premise": "It rained.", "choice1": "I got wet.", "choice2": "Ayşe sang.", "question": question, "label": 0}
        for question in ("effect", "cause")
    ]  # fmt: skip
    rows += [{**rows[0], "choice2": "It burned."}] * 2  # one Turkish name does not make the file Turkish
    pairs = read_pairs([write_rows(tmp_path / "copa.jsonl", rows)])
    assert [pair.context for pair in pairs[:2]] == ["It rained therefore", "It rained because"]
    assert pairs[0].good == " i got wet." and pairs[0].bad == " ayşe sang."


def test_broken_rows_are_reported_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    lines = [
        "{",
        json.dumps(BLIMP[0]),
        json.dumps({"sentence_good": "Only one."}),
        json.dumps({**BLIMP[0], "sentence_bad": " "}),
        json.dumps(BLIMP[1]),
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    problems: list[Problem] = []
    assert len(read_pairs([path], problems.append)) == 2
    assert [problem.location for problem in problems] == [f"{path}:{line}" for line in (1, 3, 4)]
    assert "'sentence_bad' is None" in problems[1].message
    with pytest.raises(DataError, match=r"broken\.jsonl:1: this row is not JSON"):
        read_pairs([path])


@pytest.mark.parametrize(("change", "message"), [({"question": "why"}, "'why'"), ({"label": 2}, "'2'")])
def test_broken_rows_of_xcopa(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write_rows(tmp_path / "xcopa.jsonl", [XCOPA[0], {**XCOPA[1], **change}])
    with pytest.raises(DataError, match=rf"xcopa\.jsonl:2: .*{message}"):
        read_pairs([path])


def test_what_holds_no_pairs(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match=r"human\.csv: there are no minimal pairs here.*sentence_good"):
        read_pairs([folder / "blimp" / "human.csv"])
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Bir metin.", encoding="utf-8")
    with pytest.raises(DataError, match=r"there are no minimal pairs in .*texts"):
        read_pairs([tmp_path / "texts"])
    with pytest.raises(DataError, match="no such file or folder"):
        read_pairs([tmp_path / "absent"])


def unigram_model(build_model: Callable[..., PreTrainedModel], logits: torch.Tensor) -> PreTrainedModel:
    """A LLaMA that predicts the same distribution after everything: its layers add nothing to one constant vector."""
    model = build_model("llama")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        model.get_input_embeddings().weight.zero_()
        model.get_input_embeddings().weight[:, 0] = 1.0
        width = model.config.hidden_size
        head = torch.zeros_like(model.get_input_embeddings().weight)
        head[:, 0] = logits / math.sqrt(width)  # the final norm makes √width of the 1
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(head)
    return model


def pairs_of(texts: Sequence[tuple[str, str]]) -> list[MinimalPair]:
    return [MinimalPair("BLiMP", "words", "", good, bad) for good, bad in texts]


def test_under_a_uniform_model_the_shorter_text_is_likelier(
    build_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    model = unigram_model(build_model, torch.zeros(400).double())
    texts = [("She sees.", "She sees the stars."), ("girl girl girl", "girl"), ("a", "b"), ("river", "river")]
    lengths = [[len(tokenizer.encode(text)) for text in pair] for pair in texts]
    assert [good < bad for good, bad in lengths] == [True, False, False, False]
    assert lengths[2][0] == lengths[2][1]
    scores = score_pairs(model, tokenizer, pairs_of(texts)).paradigms[0]
    assert (scores.pairs, scores.ties, scores.accuracy) == (4, 2, 0.5)
    assert scores.standard_error == pytest.approx(math.sqrt(0.5 / 3) / 2)
    assert scores.accuracy_per_token == 0.5  # every token has the same probability: four ties
    per_byte = [
        [Fraction(tokens, len(text)) for tokens, text in zip(*pair, strict=True)]
        for pair in zip(lengths, texts, strict=True)
    ]
    points = [0.5 if good == bad else float(good < bad) for good, bad in per_byte]
    assert scores.accuracy_per_byte == sum(points) / 4


def test_under_a_unigram_model_the_commoner_words_win(
    build_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    logits = 3 * torch.randn(400, dtype=torch.float64)
    table = logits.log_softmax(0)
    sentences = [
        "She sees the stars.",
        "Küçük çocuk oturdu.",
        "a girl called Ayşe",
        "old songs",
        "Ne görüyor?",
    ]
    texts = [(good, bad) for good in sentences for bad in sentences if good != bad]

    def expected(text: str) -> float:
        return float(table[tokenizer.encode(text, add_special_tokens=False)].sum())

    right = [expected(good) > expected(bad) for good, bad in texts]
    scores = score_pairs(unigram_model(build_model, logits), tokenizer, pairs_of(texts)).paradigms[0]
    assert scores.accuracy == sum(right) / len(right) == 0.5  # each pair is there both ways
    one_way = [text for text, correct in zip(texts, right, strict=True) if correct]
    assert score_pairs(unigram_model(build_model, logits), tokenizer, pairs_of(one_way)).means == {
        "BLiMP": 1.0
    }


@torch.no_grad()
def plain_score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: str, text: str) -> float:
    """The sum of log-probabilities by the model's own forward, one text."""
    head = [tokenizer.bos_token_id, *tokenizer.encode(context, add_special_tokens=False)]
    ids = torch.tensor([[*head, *tokenizer.encode(text, add_special_tokens=False)]])
    table = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
    return float(table.gather(1, ids[0, 1:, None])[len(head) - 1 :].sum())


def test_pairs_of_the_real_sets_are_scored_as_by_a_plain_forward(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, real_data: Callable[[str], Path]
) -> None:
    pairs = read_pairs(
        [real_data("eval/blimp"), real_data("eval/turblimp"), real_data("eval/xcopa_tr_val.jsonl")]
    )
    names = dict.fromkeys((pair.suite, pair.paradigm) for pair in pairs)
    counts = {suite: sum(name[0] == suite for name in names) for suite in ("BLiMP", "TurBLiMP", "XCOPA")}
    assert counts["BLiMP"] >= 14 and counts["TurBLiMP"] == 16 and counts["XCOPA"] == 1
    few = [pair for name in names for pair in [p for p in pairs if (p.suite, p.paradigm) == name][:2]]
    report = score_pairs(model, tokenizer, few)
    for scores in report.paradigms:
        points = []
        for pair in few:
            if (pair.suite, pair.paradigm) == (scores.suite, scores.paradigm):
                good, bad = (
                    plain_score(model, tokenizer, pair.context, text) for text in (pair.good, pair.bad)
                )
                points.append(0.5 if pair.good == pair.bad else float(good > bad))
        assert (scores.pairs, scores.accuracy) == (len(points), sum(points) / len(points)), scores.paradigm
    assert set(report.means) == {"BLiMP", "TurBLiMP", "XCOPA"}
    turkish = [scores.accuracy for scores in report.paradigms if scores.suite == "TurBLiMP"]
    assert report.means["TurBLiMP"] == pytest.approx(sum(turkish) / 16)


def test_the_table_has_a_row_for_each_paradigm_and_names_what_was_left_out(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    with (folder / "blimp" / "agreement.jsonl").open("a", encoding="utf-8") as file:
        file.write("[1]\n" * 22)
    console = Console(record=True, width=160, file=(folder / "output").open("w", encoding="utf-8"))
    scores = evaluate_pairs(model, tokenizer, [str(folder)], console)
    console.file.close()
    text = console.export_text()
    assert "agreement.jsonl:3: " in text and "agreement.jsonl:22: " in text
    assert "agreement.jsonl:23: " not in text and "and 2 more rows left out" in text
    for expected in ("agreement", "uyum", "xcopa_tr", "BLiMP, mean of 1", "XCOPA, mean of 1"):
        assert expected in text
    assert scores.means["TurBLiMP"] in (0.25, 0.75)  # one pair is the same sentence twice
