"""List-format answers: every rule broken and kept by hand, and the report of many answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mm_rec.errors import ConfigError, DataError
from mm_rec.evaluation.list_format import (
    RULES,
    ListPrompt,
    ListRules,
    evaluate_list_format,
    list_prompts,
    make_list_rules,
    normalise_sentence,
    score_answer,
)
from mm_rec.stories.wordlists.entries import fit_entries, read_entries, read_levels
from mm_rec.stories.wordlists.examples import make_examples, split_entries
from mm_rec.stories.wordlists.prompts import load_template, prompt, response

LEVELS = {
    word: level
    for level, row in {
        "A1": "I see a dog the cat sleep go be not at have red ball it run like my and you",
        "A2": "garden jump",
        "C1": "ubiquitous",
    }.items()
    for word in row.split()
}
WORDS = ("dog", "cat", "go")
GOOD = "1. I see the dogs.\n2. A cat sleeps.\n3. You went at 7."


def broken(answer: str, words: Sequence[str] = WORDS, rules: ListRules | None = None) -> set[str]:
    """The rules that an answer breaks."""
    score = score_answer(answer, words, rules or make_list_rules(levels=LEVELS, training=["The dog runs."]))
    assert set(score.rules) == set(RULES)
    return {rule for rule, holds in score.rules.items() if not holds}


def test_a_good_answer_keeps_every_rule() -> None:
    assert broken(GOOD) == set()
    assert broken(f"\n{GOOD}\n\n") == set(), "blank lines are no text"
    assert broken(GOOD.replace(". ", ") ")) == set(), "numbers may have a bracket"


@pytest.mark.parametrize(
    ("answer", "rules"),
    [
        ("2. A cat sleeps.\n1. I see the dogs.\n3. You went at 7.", {"numbered"}),
        ("1. I see the dogs.\n2. A cat sleeps.\n3. You went.\n4. I like it.", {"counted"}),
        (f"Here you are:\n{GOOD}", {"counted"}),
        (f"{GOOD} I like it.", {"counted"}),
        (GOOD.replace("dogs", "ball"), {"used"}),
        (
            GOOD.replace("1. I see the dogs.\n2. A cat sleeps.", "1. A cat sleeps.\n2. I see the dogs."),
            {"used"},
        ),
        (GOOD.replace("dogs", "ubiquitous dogs"), {"level"}),
        (GOOD.replace("dogs", "garden dogs"), {"level"}),
        (GOOD.replace("dogs", "blurry dogs"), {"known"}),
        (GOOD.replace("dogs", "dogs and Tom's dogs"), set()),
        (GOOD.replace("You went at 7", "Go"), {"length"}),
        (GOOD.replace("You went at 7", "You go" + " and go" * 6), {"length"}),
        (GOOD.replace("I see the dogs.", "the DOG runs!"), {"original"}),
    ],
)
def test_each_rule_is_broken_by_itself(answer: str, rules: set[str]) -> None:
    assert broken(answer) == rules


@pytest.mark.parametrize("number", ["1", "4", "", "7 at"])
def test_a_sentence_without_its_number_is_missing_and_breaks_every_rule(number: str) -> None:
    answer = GOOD.replace("2.", f"{number}.")
    assert broken(answer) == set(RULES)
    score = score_answer(answer, WORDS, make_list_rules())
    assert [item.obedient for item in score.items] == [True, False, True]


@pytest.mark.parametrize("answer", ["", "\n \n", "I cannot do that.", "### Instruction:"])
def test_an_empty_or_strange_answer_breaks_every_rule(answer: str) -> None:
    assert broken(answer) == set(RULES)


def test_the_asked_word_itself_may_be_above_the_level() -> None:
    assert broken("1. I see a ubiquitous dog.", ["ubiquitous"]) == set()
    assert broken("1. I like gardens.", ["garden"]) == set()
    assert broken("1. The dogs jump.", ["dog"]) == {"level"}
    assert broken("1. The dogs jump.", ["dog"], make_list_rules("A2", levels=LEVELS, training=["x"])) == set()


def test_what_was_found_is_kept_for_each_word() -> None:
    score = score_answer("1. Dogs jump blurrily.\n3. I went.", WORDS, make_list_rules(levels=LEVELS))
    assert [item.sentence for item in score.items] == ["Dogs jump blurrily.", "", "I went."]
    assert (score.items[0].check.above, score.items[0].check.unknown) == (("jump",), ("blurrily",))
    assert [item.obedient for item in score.items] == [True, False, True] and not score.obedient


def test_only_what_can_be_scored_is() -> None:
    assert set(score_answer(GOOD, WORDS, make_list_rules()).rules) == {
        "numbered",
        "counted",
        "used",
        "length",
    }
    assert "original" in score_answer(GOOD, WORDS, make_list_rules(training=["A."])).rules
    assert "level" in score_answer(GOOD, WORDS, make_list_rules(levels=LEVELS)).rules


def test_turkish_answers() -> None:
    rules = make_list_rules("A1", "tr", training=["Işık söndü."])
    words = ["kitap", "gitmek", "ışık"]
    assert score_answer("1. Kitabım nerede?\n2. Gidiyoruz.\n3. Işığı aç.", words, rules).obedient
    score = score_answer("1. Kitapçı geldi.\n2. Gitar çal.\n3. IŞIK SÖNDÜ!", words, rules)
    assert [item.rules["used"] for item in score.items] == [False, False, True]
    assert [item.rules["original"] for item in score.items] == [True, True, False]
    assert normalise_sentence("Işık SÖNDÜ…", "tr") == "ışık söndü"


def test_lengths_by_level() -> None:
    sentence = "1. The dog" + " runs and runs" * 4 + "."
    assert broken(sentence, ["dog"]) == {"length"}
    assert broken(sentence, ["dog"], make_list_rules("A2", levels=LEVELS, training=["x"])) == set()
    assert broken(
        "1. The dog runs.", ["dog"], make_list_rules(levels=LEVELS, training=["x"], lengths=(4, 9))
    ) == {"length"}
    with pytest.raises(ConfigError, match="'X' is not known"):
        make_list_rules("X")


def test_prompts_are_drawn_as_the_examples_are() -> None:
    words = [f"word{number}" for number in range(25)]
    prompts = list_prompts([*words, *words], 40, seed=3, level="A2")
    assert (
        prompts == list_prompts(words, 40, seed=3, level="A2") != list_prompts(words, 40, seed=4, level="A2")
    )
    assert [len(one.words) for one in prompts].count(10) == 28
    assert all(len(set(one.words)) == len(one.words) for one in prompts)
    assert prompts[0].text == prompt(prompts[0].words, "A2")
    turkish = list_prompts(words, 1, template=load_template("tr"))
    assert turkish[0].text.startswith("Şu 10 kelime için A1 düzeyinde")
    with pytest.raises(DataError, match="up to 10 different words and there are 9"):
        list_prompts(words[:9])


def answers(prompts: Sequence[ListPrompt], wrong: int) -> Callable[[list[str]], list[str]]:
    """A model that is right but for the last sentence of its first answers."""
    right = {one.text: response([f"I like {word}." for word in one.words]) for one in prompts}
    bad = {one.text for one in prompts[:wrong]}

    def answer(texts: list[str]) -> list[str]:
        assert len(texts) <= 8
        return [
            right[text].rpartition("like")[0] + "like it." if text in bad else right[text] for text in texts
        ]

    return answer


def test_the_report_counts_answers_and_sentences() -> None:
    words = [f"w{number}" for number in range(20)]
    prompts = list_prompts(words, 20, shares={(10,): 1})
    told: list[tuple[int, int]] = []
    report = evaluate_list_format(
        answers(prompts, 5), prompts, make_list_rules(), batch=8, progress=lambda *counts: told.append(counts)
    )
    assert told == [(8, 20), (16, 20), (20, 20)]
    figures = report.to_dict()
    assert report.obedience == 0.75
    assert (figures["answers"], figures["sentences"]) == (20, 200)
    assert figures["obedience"] == {"answers": 0.75, "sentences": 0.975}
    assert figures["rules"]["used"] == {"answers": 0.75, "sentences": 0.975}
    assert figures["rules"]["numbered"] == {"answers": 1.0, "sentences": 1.0}
    assert figures["by_words"]["10"]["answers"] == 20
    assert list(figures["failures"]) == ["used"] and len(figures["failures"]["used"]) == 3
    failure = figures["failures"]["used"][0]
    assert failure["prompt"] == prompts[0].text and failure["at"] == [prompts[0].words[-1]]
    assert [one["broken"] for one in figures["scored"]] == [["used"]] * 5 + [[]] * 15
    assert json.loads(json.dumps(figures)) == figures
    text = "\n".join(report.lines())
    assert "75.0% of the answers, 97.5% of the sentences" in text and "breaks 'used' at" in text


def test_a_report_of_no_good_answer_and_one_of_none() -> None:
    prompts = list_prompts(["dog", "cat"], 2, shares={(2,): 1})
    report = evaluate_list_format(lambda texts: [""] * len(texts), prompts, make_list_rules(levels=LEVELS))
    assert report.to_dict()["rules"]["level"] == {"answers": 0.0, "sentences": 0.0}
    assert "(nothing)" in "\n".join(report.lines())
    assert evaluate_list_format(lambda texts: [], [], make_list_rules()).to_dict()["answers"] == 0


def test_words_above_the_level_and_unknown_ones_are_named() -> None:
    prompts = [ListPrompt(("dog",), "?"), ListPrompt(("cat",), "??")]
    given = {"?": "1. The dog jumps blurrily.", "??": "1. My cat jumps."}
    report = evaluate_list_format(
        lambda texts: [given[text] for text in texts], prompts, make_list_rules(levels=LEVELS)
    )
    figures = report.to_dict()
    assert figures["words_above"] == {"jumps": 2} and figures["unknown_words"] == {"blurrily": 1}
    assert figures["rules"]["known"]["sentences"] == 0.5 and figures["rules"]["level"]["sentences"] == 0
    assert "above the level: jumps 2" in report.lines()


def test_the_answer_of_the_user_s_document_has_two_flaws(real_data: Callable[[str], Path]) -> None:
    """Its expected output never uses "age", and "sunset" is no word of A1."""
    names = ("cefrj-vocabulary-profile-1.5.csv", "octanove-vocabulary-profile-c1c2-1.0.csv")
    levels = read_levels([real_data(f"cefr/{name}") for name in names])
    answer = (
        "1. My grandmother is 80 years old.\n2. I like animals.\n3. Can I ask a question?\n"
        "4. I use my computer for homework.\n5. I eat breakfast every morning.\n6. My father has a red car.\n"
        "7. I like pizza, but I don't like vegetables.\n8. I can drive a car.\n9. The sunset is amazing.\n"
        "10. That movie was very funny."
    )
    words = ["age", "animal", "ask", "computer", "eat", "car", "but", "drive", "amazing", "funny"]
    score = score_answer(answer, words, make_list_rules(levels=levels))
    flaws = {item.word: [rule for rule, holds in item.rules.items() if not holds] for item in score.items}
    assert {word: rules for word, rules in flaws.items() if rules} == {"age": ["used"], "amazing": ["level"]}


def test_real_sentences_score_as_they_should(real_data: Callable[[str], Path]) -> None:
    """Sentences of A1 words are obedient, at their level and known, and all copies where they were trained on."""
    levels = read_levels([real_data("cefr/cefrj-vocabulary-profile-1.5.csv")])
    entries = fit_entries(read_entries(real_data("cefr/a1_examples_en_tr.tsv")))
    examples = make_examples(split_entries(entries, 0.1)[1], 50)
    given = {prompt(one.words): response(one.sentences) for one in examples}
    prompts = [ListPrompt(one.words, prompt(one.words)) for one in examples]
    rules = make_list_rules(levels=levels, training=[entry.sentence for entry in entries])
    figures = evaluate_list_format(lambda texts: [given[text] for text in texts], prompts, rules).to_dict()
    assert figures["obedience"] == {"answers": 1.0, "sentences": 1.0}
    assert min(figures["rules"][rule]["sentences"] for rule in ("level", "known", "length")) > 0.98
    assert figures["rules"]["original"]["sentences"] == 0
