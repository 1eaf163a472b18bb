"""The measures against their literal, slow form, and one page for each rule."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import islice

import pytest

from mm_rec.cleaning.document import CleaningDocument
from mm_rec.cleaning.measures import MEASURES
from mm_rec.cleaning.rules import first_violation, rules_for
from mm_rec.errors import ConfigError
from mm_rec.text.languages import get_language

TURKISH = get_language("tr")


def page(text: str) -> CleaningDocument:
    return CleaningDocument(text, TURKISH)


def slow_top(words: list[str], n: int) -> int:
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    if not grams:
        return 0
    gram, count = Counter(grams).most_common(1)[0]
    return count * len(" ".join(gram))


def slow_duplicates(words: list[str], n: int) -> int:
    seen, characters, place = set(), 0, 0
    while place + n <= len(words):
        gram = tuple(words[place : place + n])
        if gram in seen:
            characters += sum(map(len, gram))
            place += n
        else:
            seen.add(gram)
            place += 1
    return characters


def slow_repeated(items: list[str]) -> int:
    return sum(len(item) for place, item in enumerate(items) if item in items[:place])


def compare(text: str) -> None:
    made = page(text)
    for n in (2, 3, 4):
        assert MEASURES[f"top_{n}_gram"](made) == pytest.approx(
            slow_top(made.words, n) / len(text), abs=1e-12
        )
    for n in range(5, 11):
        expected = slow_duplicates(made.words, n) / len(text)
        assert MEASURES[f"duplicate_{n}_grams"](made) == pytest.approx(expected, abs=1e-12)
    assert MEASURES["duplicate_line_characters"](made) == slow_repeated(made.lines) / len(text)
    assert MEASURES["duplicate_paragraph_characters"](made) == slow_repeated(made.paragraphs) / len(text)
    letters = sum(any(character.isalpha() for character in word) for word in made.words)
    assert MEASURES["words_with_letters"](made) == letters / max(1, len(made.words))


@pytest.mark.parametrize("seed", range(40))
def test_repetition_is_measured_as_its_literal_definition_says(seed):
    chance = random.Random(seed)
    vocabulary = [f"söz{number}" for number in range(chance.choice([2, 5, 50, 500]))] + ["12", "3,5", "don't"]
    words = chance.choices(vocabulary, k=chance.choice([1, 4, 9, 60, 400]))
    if seed % 2:  # whole passages that stand twice, overlapping themselves too
        words += words[: len(words) // 2] * chance.randrange(1, 4)
    compare("".join(word + chance.choice([" ", " ", ". ", ".\n", "\n\n"]) for word in words))


def test_repetition_is_measured_so_on_real_text(real_data):
    for name in ("tr/daron_blog.jsonl", "tr/laws.jsonl"):
        with real_data(name).open(encoding="utf-8") as rows:
            for row in islice(rows, 0, 400, 20):
                compare(json.loads(row)["text"])


PROSE = (
    "Sabah erkenden uyandı ve pencereyi açtı. Dışarıda ince bir yağmur yağıyordu, sokaklar boştu.\n"
    "Mutfağa gidip çay koydu; bu evde çay bir gelenek gibiydi. Annesi ona eski günleri anlatırdı.\n"
    "Kitabını aldı, kaldığı yeri buldu ve okumaya başladı. Roman bir adanın hikâyesini anlatıyordu.\n"
    "Ada halkı balıkçılıkla geçinir, kışın ise ağ örerdi. Fakat o yıl deniz çok hırçındı.\n"
    "Saatler geçti, yağmur dindi. Güneş bulutların arasından çıkınca o da dışarı çıkmaya karar verdi."
)
BROKEN = {
    "gopher_words": "Kısa bir yazı.",
    "gopher_word_length": " ".join(["a b c d e f"] * 20) + ".",
    "gopher_hashes": PROSE + " #" * 40,
    "gopher_ellipses": PROSE.replace(". ", "... ").replace(",", "…").replace(" ve ", "… ve ") + "…" * 5,
    "gopher_bullet_lines": "\n".join(f"- {sentence}." for sentence in PROSE.replace("\n", " ").split(". ")),
    "gopher_ellipsis_lines": "\n".join(f"{line[:-1]} …" for line in PROSE.split("\n")),
    "gopher_letters": PROSE + " " + " ".join(str(number) for number in range(1000, 1040)),
    "gopher_stop_words": " ".join(f"kelime{chr(97 + i % 26)}{chr(97 + i // 26)} yazıldı." for i in range(60)),
    "fineweb_punctuation": "\n".join(line.rstrip(".") for line in PROSE.replace(". ", "\n").split("\n")),
    "fineweb_short_lines": PROSE + "".join(f"\n{word.capitalize()} geldi." for word in PROSE.split()[:40]),
    "fineweb_repetition": PROSE + "\n" + PROSE.split("\n", maxsplit=1)[0],
    "fineweb_lists": PROSE.replace(" ", ".\n"),
    "c4_sentences": PROSE.replace(". ", ", ").replace(".\n", ",\n"),
    "c4_lorem_ipsum": PROSE + " Lorem ipsum dolor sit amet.",
    "digits": PROSE + " " + " ".join(f"madde{number}0000000000" for number in range(10, 30)),
    "word_characters": PROSE + " " + "=+" * 200,
    "gopher_top_2_gram": PROSE + " Evet efendim." * 25,
}


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule_leaves_out_the_page_that_breaks_it(rule):
    only = [known for known in rules_for("tr", {rule: {"active": True}}) if known.rule == rule]
    assert first_violation(page(PROSE), only) is None
    drop = first_violation(page(BROKEN[rule]), only)
    assert drop is not None
    assert drop.reason == rule
    assert only[0].measure in drop.measured


def test_good_prose_passes_all_rules():
    for code in ("tr", "en"):
        assert (
            first_violation(
                page(PROSE), [rule for rule in rules_for(code) if rule.rule != "gopher_stop_words"]
            )
            is None
        )
    assert first_violation(page(PROSE), rules_for("tr")) is None


def test_limits_are_changed_by_name_and_an_unknown_name_is_an_error():
    words = {rule.rule: rule for rule in rules_for("tr", {"gopher_words": {"min": 3}})}["gopher_words"]
    assert words.check(page("Üç kelime var.")) is None
    with pytest.raises(ConfigError, match=r"no cleaning rule 'gopher_word'.*gopher_words"):
        rules_for("tr", {"gopher_word": {"min": 3}})
    with pytest.raises(ConfigError, match="did you mean 'min'"):
        rules_for("tr", {"gopher_words": {"mn": 3}})


def test_a_rule_that_is_off_by_default_can_be_turned_on():
    text = PROSE + " if (a) { b(); }"
    assert first_violation(page(text), rules_for("tr")) is None
    drop = first_violation(page(text), rules_for("tr", {"c4_curly_brackets": {"active": True}}))
    assert drop is not None
    assert drop.reason == "c4_curly_brackets"
