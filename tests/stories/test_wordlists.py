"""List-format data: every shape of word list, examples that use all words evenly, and the files that are written."""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mm_rec.cli.main import run
from mm_rec.data.conversations.dataset_reader import read_conversations
from mm_rec.errors import ConfigError, DataError
from mm_rec.stories.wordlists.entries import WordEntry, fit_entries, read_entries, read_levels, read_word_list
from mm_rec.stories.wordlists.examples import (
    ListExample,
    draw_words,
    is_held_out_word,
    make_examples,
    parse_shares,
    split_entries,
)
from mm_rec.stories.wordlists.export import write_list_format
from mm_rec.stories.wordlists.prompts import instruction_text, load_template, prompt, response
from mm_rec.text.inflection import contains_word

CEFR = """\
headword,pos,CEFR
see,verb,A1
saw,noun,B2
dog,noun,A1
dog,verb,C1
color/colour,noun,A1
a.m./am,adverb,A1
am,be-verb,A1
'm,be-verb,A1
lion/bear,noun,A2
bear,noun,B1
the,determiner,A1
"""

# What the seed 42 and the hash gave when this was written: other versions of numpy must give the same.
PINNED = [tuple("ekjfdalchb"), tuple("gijkahlcfb"), tuple("geidbfjc")]
HELD = list("efpquy")


def write(path: Path, content: object) -> Path:
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
    return path


def made_entries(count: int, sentences: int = 3) -> list[WordEntry]:
    names = [f"{first}{second}" for first in string.ascii_lowercase for second in string.ascii_lowercase][
        :count
    ]
    return [WordEntry(name, f"{name} number {number}.") for name in names for number in range(sentences)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "a.json",
            [
                {"word": "dog", "sentence": "I see a  dog.\n"},
                {"word": "cat", "sentence": "Cats sleep.", "level": "A1"},
            ],
        ),
        ("b.json", {"dog": ["I see a dog."], "cat": ["Cats sleep."]}),
        (
            "c.jsonl",
            '{"Kelime": "dog", "Cümle": "I see a dog."}\n{"Kelime": "cat", "Cümle": "Cats sleep.", "seviye": "a1.2"}\n',
        ),
        ("d.csv", "headword;example;CEFR\ndog;I see a dog.;\ncat;Cats sleep.;A1\n"),
        ("e.tsv", "id\tword\ttext\n1\tdog\tI see a dog.\n2\tcat\tCats sleep.\n"),
        (
            "f.json",
            [
                {"headword": "dog", "examples": ["I see a dog."]},
                {"headword": "cat", "examples": ["Cats sleep."]},
            ],
        ),
    ],
)
def test_every_shape_gives_the_same_entries(tmp_path: Path, name: str, content: object) -> None:
    found = read_entries(write(tmp_path / name, content))
    assert [(entry.word, entry.sentence) for entry in found] == [
        ("dog", "I see a dog."),
        ("cat", "Cats sleep."),
    ]
    assert found[1].level in ("", "A1")


def test_a_level_keeps_its_words_and_those_without_one(tmp_path: Path) -> None:
    rows = [
        {"word": "dog", "sentence": "A dog.", "level": "A1"},
        {"word": "abandon", "sentence": "Abandon it.", "level": "B1"},
        {"word": "cat", "sentence": "A cat."},
    ]
    path = write(tmp_path / "words.json", rows)
    assert [entry.word for entry in read_entries(path, level="a1")] == ["dog", "cat"]
    assert [entry.word for entry in read_entries(path, level="B1")] == ["abandon", "cat"]


def test_a_column_can_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "both.tsv", "headword\tenglish\tturkish\ndog\tA dog.\tBir köpek.\n")
    assert read_entries(path) == [WordEntry("dog", "A dog.")]
    assert read_entries(path, sentence_column="turkish") == [WordEntry("dog", "Bir köpek.")]


def test_a_list_takes_sentences_by_headword(tmp_path: Path) -> None:
    words = write(tmp_path / "cefr.csv", CEFR)
    sentences = write(
        tmp_path / "sentences.tsv",
        "headword\tenglish\nDog\tMy dog sleeps.\nDog\tMy dog sleeps.\ncolour\tI like the colour.\nlion\tA lion.\n",
    )
    messages: list[str] = []
    assert read_entries(words, sentences, "A1", report=messages.append) == [
        WordEntry("dog", "My dog sleeps.", "A1"),
        WordEntry("colour", "I like the colour.", "A1"),
    ]
    assert messages == [
        f"{words}:{row}: there is no sentence for {word!r}"
        for row, word in ((1, "see"), (6, "a.m."), (7, "am"), (11, "the"))
    ]
    assert [entry.word for entry in read_entries(words, sentences, "A2")] == ["lion"]


def test_a_list_is_searched_in_plain_sentences_that_have_no_word_above_the_level(tmp_path: Path) -> None:
    words = write(tmp_path / "cefr.csv", CEFR)
    lines = [
        "Tom saw the dogs.\tTom köpekleri gördü.",
        "The bear saw Tom.\tAyı Tom'u gördü.",
        "See the zebra!\tBak!",
    ]
    sentences = write(tmp_path / "plain.tsv", "\n".join(lines) + "\n")
    assert read_entries(words, sentences, "A1") == [
        WordEntry(word, "Tom saw the dogs.", "A1") for word in ("see", "dog", "the")
    ]
    assert [entry.sentence for entry in read_entries(words, sentences, "B1")] == ["The bear saw Tom."]
    turkish = write(tmp_path / "kelimeler.txt", "köpek\n\ngörmek\n")
    assert read_entries(turkish, sentences, sentence_column="2", language="tr") == [
        WordEntry("köpek", "Tom köpekleri gördü."),
        WordEntry("görmek", "Tom köpekleri gördü."),
        WordEntry("görmek", "Ayı Tom'u gördü."),
    ]


def test_a_search_keeps_a_few_sentences_of_all_lengths(tmp_path: Path) -> None:
    sentences = write(tmp_path / "plain.txt", "\n".join(f"A dog {'very ' * n}barks." for n in range(100)))
    found = read_entries(write(tmp_path / "words.txt", "dog"), sentences)
    assert [entry.sentence.count("very") for entry in found] == list(range(0, 100, 5))


def test_the_words_of_a_list_have_its_lowest_level(tmp_path: Path) -> None:
    words = write(tmp_path / "cefr.csv", CEFR)
    assert read_word_list(words, "a1") == ["see", "dog", "color", "a.m.", "am", "the"]
    assert read_word_list(words, "B2") == ["saw"]
    plain = write(tmp_path / "words.txt", "IŞIK\nışık\nMum\n")
    assert read_word_list(plain, "A1", "tr") == ["IŞIK", "Mum"]
    with pytest.raises(DataError, match=r"cefr\.csv: there is no word here of level C2"):
        read_word_list(words, "C2")


def test_levels_are_the_lowest_of_every_spelling(tmp_path: Path) -> None:
    lists = [
        write(tmp_path / "a.csv", CEFR),
        write(tmp_path / "b.csv", "headword,CEFR\nsaw,C1\nharbour,C1\n"),
    ]
    levels = read_levels(lists)
    assert levels["dog"] == levels["colour"] == levels["am"] == "A1"
    assert (levels["saw"], levels["lion"], levels["bear"], levels["harbour"]) == ("B2", "A2", "B1", "C1")
    assert "'m" not in levels
    with pytest.raises(
        DataError, match=r"w\.csv: there are no levels here\. The column is one of: level, cefr"
    ):
        read_levels([write(tmp_path / "w.csv", "word\ndog\n")])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "noun,use\ndog,A dog.\n", r"a\.csv:1: there is no column for the word.*'noun', 'use'"),
        ("b.csv", "word,pos\ndog,noun\n", r"b\.csv: these words have no sentences\. Give.*--sentences"),
        ("c.json", [], r"c\.json: the file has no rows"),
        (
            "d.json",
            [{"word": "dog", "sentence": "A."}, {"word": " ", "sentence": "B."}],
            r"d\.json:1: 'word' is ' '",
        ),
        ("e.json", [{"word": "dog", "sentence": 3}], r"e\.json:1: the sentence is 3"),
        ("f.csv", "word,text,level\ndog,A dog.,Z\n", r"f\.csv:1: the level is 'Z'; it must be one of A1"),
        (
            "g.csv",
            "word,text,level\ndog,A dog.,C2\n",
            r"g\.csv: there is no word of level A1 with a sentence",
        ),
        ("h.xlsx", "x", r"h\.xlsx"),
    ],
)
def test_what_cannot_be_used_says_where_and_what_to_do(
    tmp_path: Path, name: str, content: object, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_entries(write(tmp_path / name, content), level="A1")


def test_a_missing_column_is_named_with_those_that_exist(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "word,text\ndog,A dog.\n")
    with pytest.raises(
        DataError, match=r"no column 'fr' \(--sentence-column\); this file has: 'word', 'text'"
    ):
        read_entries(path, sentence_column="fr")
    words = write(tmp_path / "w.txt", "dog")
    with pytest.raises(DataError, match=r"a\.tsv:2: this line has 1 columns and not 2"):
        read_entries(words, write(tmp_path / "a.tsv", "a dog\tbir köpek\na dog\n"), sentence_column="2")
    with pytest.raises(DataError, match=r"b\.csv:1: there is no column for the sentence.*'x', 'y'"):
        read_entries(words, write(tmp_path / "b.csv", "x,y\n1,2\n"))


def test_only_single_sentences_with_their_word_are_fit() -> None:
    entries = [
        WordEntry("agree", "I agreed."),
        WordEntry("agree", "OK. I agree."),
        WordEntry("bank", "Tom is a banker."),
        WordEntry("ev", "Evdeyim."),
    ]
    messages: list[str] = []
    assert fit_entries(entries[:3], "en", messages.append) == entries[:1]
    assert messages == [
        "agree: this is not one sentence: OK. I agree.",
        "bank: the word is not in the sentence: Tom is a banker.",
    ]
    assert fit_entries(entries[3:], "tr") == entries[3:]
    assert fit_entries(entries, "de") == entries


def test_sizes_are_exact_and_every_word_is_used_evenly() -> None:
    examples = make_examples(made_entries(97), 2000)
    sizes = Counter(len(example.words) for example in examples)
    assert sizes == {10: 1400, 9: 200, 8: 200, 7: 100, 6: 100}
    uses = Counter(word for example in examples for word in example.words)
    assert len(uses) == 97 and max(uses.values()) - min(uses.values()) <= 1
    pairs = Counter(
        pair for example in examples for pair in zip(example.words, example.sentences, strict=True)
    )
    for word in uses:
        counts = [pairs[word, f"{word} number {number}."] for number in range(3)]
        assert max(counts) - min(counts) <= 1
    assert sizes.keys() != {len(example.words) for example in examples[:20]}, "the sizes are mixed"


@pytest.mark.parametrize("count", [1, 7, 999])
def test_sizes_are_as_near_to_the_shares_as_whole_numbers_come(count: int) -> None:
    sizes = Counter(map(len, draw_words([str(number) for number in range(50)], count)))
    assert sizes.total() == count
    for group, share in {(10,): 0.7, (8, 9): 0.2, (6, 7): 0.1}.items():
        assert abs(sum(sizes[size] for size in group) - share * count) < 1


@pytest.mark.parametrize("words", [10, 11, 13, 19, 101])
def test_no_word_comes_twice_in_an_example(words: int) -> None:
    """Also where one order of all words ends in the middle of an example, and with no word to spare."""
    drawn = draw_words([str(number) for number in range(words)], 300)
    assert all(len(set(example)) == len(example) for example in drawn)
    uses = Counter(word for example in drawn for word in example)
    assert max(uses.values()) - min(uses.values()) <= 1


def test_capitals_make_no_other_word() -> None:
    entries = [WordEntry(word, f"{word}!") for word in ("Mum", "mum", "IŞIK", "ışık", "işik")]
    assert {len(example.words) for example in make_examples(entries, 5, shares={(3,): 1}, language="tr")} == {
        3
    }
    with pytest.raises(DataError, match="up to 4 different words and there are 3"):
        make_examples(entries, 5, shares={(4,): 1}, language="tr")


def test_the_choice_is_the_seed_s_alone() -> None:
    assert draw_words("abcdefghijkl", 3, 42) == PINNED
    entries = made_entries(40)
    assert make_examples(entries, 50, seed=7) == make_examples(entries, 50, seed=7)
    assert make_examples(entries, 50, seed=7) != make_examples(entries, 50, seed=8)
    for count, seed in ((0, 1), (1, -1)):
        with pytest.raises(ConfigError, match=r"the number of examples is 0|the seed is -1"):
            make_examples(entries, count, seed)


def test_held_out_words_are_a_function_of_their_letters() -> None:
    assert [letter for letter in string.ascii_lowercase if is_held_out_word(letter, 0.2)] == HELD
    words = [f"word{number}" for number in range(3000)]
    held = {word for word in words if is_held_out_word(word, 0.1)}
    assert 0.08 < len(held) / len(words) < 0.12
    assert held < {word for word in words if is_held_out_word(word, 0.2)}
    assert all(is_held_out_word(word.upper(), 0.1) for word in held)
    assert is_held_out_word("IŞIK", 0.5) == is_held_out_word("ışık", 0.5)
    entries = [WordEntry(word, f"A {word}.") for word in words]
    learnt, kept = split_entries(entries, 0.1)
    assert {entry.word for entry in kept} == held and len(learnt) + len(kept) == 3000
    assert split_entries(entries, 0) == (entries, [])
    with pytest.raises(ConfigError, match="--held-out is 1"):
        split_entries(entries, 1)


def test_the_prompt_to_the_letter() -> None:
    words = ["age", "animal", "ask", "computer", "eat", "car", "but", "drive", "amazing", "funny"]
    assert prompt(words) == (
        "Generate A1-level English sentences for these 10 words:\n"
        "1. age\n2. animal\n3. ask\n4. computer\n5. eat\n6. car\n7. but\n8. drive\n9. amazing\n10. funny\n"
        "\n"
        "Provide numbered sentences (1-10), using each word naturally and appropriately for A1 level."
    )
    assert prompt(words[:6], "B2").startswith(
        "Generate B2-level English sentences for these 6 words:\n1. age\n"
    )
    assert response(["I am 8.", "I ask."]) == "1. I am 8.\n2. I ask."
    assert instruction_text("Ask.", "1. Yes.") == "### Instruction:\nAsk.\n\n### Response:\n1. Yes."
    assert prompt(["ev", "su"], "A2", load_template("tr")) == (
        "Şu 2 kelime için A2 düzeyinde Türkçe cümleler yaz:\n1. ev\n2. su\n\n"
        "Cümleleri numaralandır (1-2); her kelimeyi doğal biçimde ve A2 düzeyine uygun olarak kullan."
    )


def test_a_template_of_the_user_s(tmp_path: Path) -> None:
    path = write(tmp_path / "prompt.txt", "Sätze ({level}) für {count} Wörter:\n{words}\n{{}}\n")
    assert prompt(["Haus"], "B1", load_template("de", path)) == "Sätze (B1) für 1 Wörter:\n1. Haus\n{}"
    with pytest.raises(ConfigError, match=r"no prompt in the language 'de', only in en, tr.*--template"):
        load_template("de")
    for text, message in (
        ("Write!", "the field {words} is missing"),
        ("{words} {topic}", "the field {topic} is not known"),
        ("{words} {level.__class__}", "the field {level.__class__} is not known"),
        ("{words} {", "A brace that is no field is doubled"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_template("en", write(path, text))
    with pytest.raises(ConfigError, match=r"none\.txt: this template cannot be read"):
        load_template("en", tmp_path / "none.txt")


def test_shares_are_parsed() -> None:
    assert parse_shares("10=70, 8-9=20,6-7=10") == {(10,): 70.0, (8, 9): 20.0, (6, 7): 10.0}
    for text in ("10", "9-8=1", "0=1", "10=0", ""):
        with pytest.raises(ConfigError, match="--shares"):
            parse_shares(text)


def test_all_files_hold_the_same_examples(tmp_path: Path) -> None:
    examples = [
        ListExample(("dog", "cat"), ("I see a dog.", "Cats sleep.")),
        ListExample(("go",), ("I went.",)),
    ]
    paths = write_list_format(examples, tmp_path, "A1", load_template("en"), ["bird"])
    assert [path.name for path in paths] == [
        *(f"training_data_a1_list_format.{kind}" for kind in ("json", "txt", "jsonl")),
        "held_out_words.csv",
    ]
    pairs = [(prompt(example.words), response(example.sentences)) for example in examples]
    assert json.loads(paths[0].read_text()) == [
        {"instruction": asked, "input": "", "output": answer} for asked, answer in pairs
    ]
    assert paths[1].read_text() == "\n\n\n".join(instruction_text(*pair) for pair in pairs)
    for path in (paths[0], paths[2]):
        found = read_conversations([path])
        assert not found.issues
        assert [tuple(message.content for message in one.messages) for one in found.conversations] == pairs
    assert paths[3].read_text() == "word\nbird\n"
    write_list_format(examples, tmp_path, "A1", load_template("en"))
    assert not paths[3].exists(), "held-out words of an earlier call would mislead"


@pytest.mark.parametrize("cut", ["", "\n\n"])
def test_a_hard_cut_inside_an_example_is_refused(tmp_path: Path, cut: str) -> None:
    with pytest.raises(ConfigError, match="--hard-cut"):
        write_list_format(
            [ListExample(("go",), ("I went.",))], tmp_path, "A1", load_template("en"), hard_cut=cut
        )
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [
        {"word": entry.word, "sentence": entry.sentence} for entry in made_entries(60)
    ]
    rows += [{"word": "bank", "sentence": "A banker."}, {"word": "bare", "sentence": ""}]
    words, out = write(tmp_path / "words.json", rows), tmp_path / "out"
    command = ["data", "list-format", str(words), "--out", str(out), "--count", "50", "--level", "a2"]
    assert run([*command, "--hard-cut", "\\n===\\n"]) == 0
    printed = capsys.readouterr().out
    assert "50 examples: 35 of 10 words, 5 of 9 words, 5 of 8 words" in printed
    assert "there is no sentence for 'bare'" in printed and "bank: the word is not in the sentence" in printed
    assert len((out / "training_data_a2_list_format.txt").read_text().split("\n===\n")) == 50
    held = (out / "held_out_words.csv").read_text().split()[1:]
    assert held == [entry.word for entry in made_entries(60, 1) if is_held_out_word(entry.word, 0.1)]
    learnt = json.loads((out / "training_data_a2_list_format.json").read_text())
    asked = {line.split(". ")[1] for row in learnt for line in row["instruction"].split("\n")[1:-2]}
    assert len(asked) == 60 - len(held) and not asked & set(held)
    assert run(command) == 2
    assert "has training_data_a2_list_format.json, " in capsys.readouterr().err
    before = (out / "training_data_a2_list_format.jsonl").read_bytes()
    assert run([*command, "--overwrite", "--held-out", "0", "--shares", "3=1"]) == 0
    assert (out / "training_data_a2_list_format.jsonl").read_bytes() != before
    assert not (out / "held_out_words.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.json"], "none.json: there is no such file"),
        (["words.txt"], "words.txt: these words have no sentences"),
        (["words.json", "--level", "D1"], "'D1' is not known"),
        (["words.json", "--language", "de"], "--template"),
        (["words.json"], "an example has up to 10 different words and there are 1"),
        (["words.json", "--held-out", "1.5"], "--held-out is 1.5"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "words.json", [{"word": "dog", "sentence": "A dog."}])
    write(tmp_path / "words.txt", "dog\n")
    assert run(["data", "list-format", *arguments, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not Path("out").exists()


def test_real_lists(real_data: Callable[[str], Path]) -> None:
    vocabulary = real_data("cefr/cefrj-vocabulary-profile-1.5.csv")
    entries = read_entries(vocabulary, real_data("cefr/a1_examples_en_tr.tsv"), "A1")
    fit = fit_entries(entries)
    assert len({entry.word for entry in fit}) > 900 and len(fit) > 0.99 * len(entries)
    learnt, kept = split_entries(fit, 0.1)
    assert {entry.word for entry in learnt}.isdisjoint(entry.word for entry in kept)
    examples = make_examples(learnt)
    assert len(examples) == 2000
    for example in examples[:200]:
        assert all(map(contains_word, example.sentences, example.words))
    levels = read_levels([vocabulary, real_data("cefr/octanove-vocabulary-profile-c1c2-1.0.csv")])
    assert (
        Counter(levels.values()).keys() == {"A1", "A2", "B1", "B2", "C1", "C2"}
        and levels["aeroplane"] == "A1"
    )
