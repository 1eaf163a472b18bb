import hashlib
import json
import re
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path

import pytest

from mm_rec.config import load_yaml
from mm_rec.data.conversations.validation import check_conversation
from mm_rec.stories import language_files
from mm_rec.stories.english import with_article
from mm_rec.stories.generator import (
    conversations,
    held_out_phrasing,
    held_out_questions,
    languages,
    stories,
)
from mm_rec.stories.language_files import read_file
from mm_rec.stories.patterns import StoryLanguage
from mm_rec.stories.turkish import capitalise, name, noun

BY_CODE = {language.code: language for language in languages()}
each_language = pytest.mark.parametrize("language", languages(), ids=lambda language: language.code)


def flat(text: str) -> str:
    """Put a passage and its question on one line, whatever layout they came in."""
    return re.sub(r"\s*\n\s*", " ", re.sub(r"(Question|Soru|Text|Metin|Listen|Dinle): ", "", text))


def test_same_seed_gives_the_same_text_and_fewer_documents_are_a_prefix() -> None:
    documents = list(stories(7, 300))
    assert documents == list(stories(7, 300))
    assert documents[:100] == list(stories(7, 100))
    assert documents != list(stories(8, 300))
    assert held_out_questions(7, 50) == held_out_questions(7, 50)


@pytest.mark.parametrize(
    ("language", "of_stories", "of_questions", "of_conversations"),
    [
        (
            "en",
            "80dcd6e6cac649803a88df7587725c1eed5d79eddf405b0ef6ee438d86718350",
            "414118528be08a0a2c74b6bf405576410b21ad04cb54db9a87931be10edcf3f2",
            "ebfc3c5f3bc52dd13d4470887b6422c35e5bc00c8bb8e84b435a92a69032928a",
        ),
        (
            "tr",
            "8daf5e10a92a6bed4e227661748dff922fb42f9b73b1b3781f388d12216e5e9f",
            "302932b924dd3e379aef9133e838d94d5dc9a7aa18d396eb31e702132783a6ad",
            "18608b254075fcfd3f684dfe845bf3cf9b43093e9458cc1afee8081751516118",
        ),
    ],
)
def test_the_text_is_byte_for_byte_what_results_were_measured_on(
    language: str, of_stories: str, of_questions: str, of_conversations: str
) -> None:
    made = [(story.kind, story.text) for story in stories(0, 4000) if story.language == language]
    asked = [
        (question.kind, question.prompt, question.answer)
        for question in held_out_questions(0, 2000)
        if question.language == language
    ]
    talked = [
        [(message.role, message.content) for message in one.messages]
        for one in conversations(0, 2000)
        if one.metadata["language"] == language
    ]
    assert [_sha256(rows) for rows in (made[:1000], asked, talked)] == [
        of_stories,
        of_questions,
        of_conversations,
    ]


def _sha256(rows: object) -> str:
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()


@each_language
@pytest.mark.parametrize("kind", ["words", "plots", "passages", "facts", "chat"])
def test_no_key_stands_twice_in_a_file(language: StoryLanguage, kind: str) -> None:
    path = Path(language_files.__file__).parent / language.code / f"{kind}.yaml"
    assert load_yaml(path) == read_file(language.code, kind)


def test_shares_of_kinds_and_languages() -> None:
    documents = list(stories(0, 20_000))
    kinds = Counter(document.kind for document in documents)
    assert kinds["story"] / 20_000 == pytest.approx(0.30, abs=0.02)
    assert kinds["question"] / 20_000 == pytest.approx(0.40, abs=0.02)
    assert kinds["chat"] / 20_000 == pytest.approx(0.30, abs=0.02)
    for kind in kinds:
        turkish = sum(document.language == "tr" for document in documents if document.kind == kind)
        assert turkish / kinds[kind] == pytest.approx(0.5, abs=0.03)


def test_held_out_questions_are_balanced_and_different() -> None:
    questions = held_out_questions(3, 402)
    cells = Counter((question.language, question.kind) for question in questions)
    assert len(cells) == 4
    assert max(cells.values()) - min(cells.values()) <= 1
    assert len({question.prompt for question in questions}) == 402


def test_no_held_out_question_occurs_in_training_text() -> None:
    training = "\n".join(flat(document.text) for seed in range(4) for document in stories(seed, 12_000))
    for question in held_out_questions(0, 400):
        if question.kind == "question":
            asked = question.prompt.rpartition("\n")[0]
        else:
            asked = question.prompt.rpartition("<|user|>\n")[2].partition("\n<|endoftext|>")[0]
        assert flat(asked) not in training


@each_language
def test_a_fact_and_a_phrasing_held_out_together_are_each_seen_with_others(language: StoryLanguage) -> None:
    for group in language.fact_groups:
        count = len(group.ask.phrasings)
        assert count >= 4
        held_out = Counter(held_out_phrasing(group, position) for position in range(len(group.facts)))
        assert 3 * max(held_out.values()) <= len(group.facts)


def test_a_question_has_one_answer_wherever_it_is_asked() -> None:
    answers = defaultdict(set)
    for question in held_out_questions(1, 3000):
        answers[question.prompt].add(question.answer)
    for document in stories(1, 20_000):
        if document.kind == "question":
            passage = ""
            for line in document.text.split("\n"):
                label, _, rest = line.partition(": ")
                if label in ("Question", "Soru"):
                    asked = f"{passage}\n{rest}"
                elif label in ("Answer", "Cevap"):
                    answers[asked].add(rest)
                else:
                    passage = rest
    assert len(answers) > 5000
    assert [asked for asked, given in answers.items() if len(given) > 1] == []


@each_language
def test_answers_about_a_passage_are_copied_from_it(language: StoryLanguage) -> None:
    for family in language.families:
        cast = {
            role: language.pools[pool][number] for number, (role, pool) in enumerate(family.roles.items())
        }
        for passage in family.passages:
            text = passage.format(**cast)
            assert len(text.split()) < 60
            for ask in family.asks:
                assert ask.short.format(**cast).lower() in text.lower()
                assert any(part in ask.full for part in (ask.short, *re.findall(r"{\w+}", ask.short)))


@each_language
def test_every_pattern_renders_as_clean_sentences(language: StoryLanguage) -> None:
    patterns = [(plot.roles, sentence) for plot in language.plots for step in plot.steps for sentence in step]
    patterns += [(tale.roles, text) for tale in language.tales for text in (*tale.requests, *tale.replies)]
    patterns += [(family.roles, text) for family in language.families for text in family.passages]
    patterns += [
        (family.roles, text)
        for family in language.families
        for ask in family.asks
        for text in (*ask.phrasings, ask.full)
    ]
    for roles, pattern in patterns:
        for offset in range(6 if pattern else 0):
            cast = {
                role: language.pools[pool][offset % len(language.pools[pool])] for role, pool in roles.items()
            }
            sentence = language.capitalise(pattern.format(**cast))
            assert re.fullmatch(r"[\w\"][^{}<>|]*[\w\"][.!?]|[\w\"].*[.!?]\"", sentence), sentence
            assert sentence[0] == '"' or sentence[0].isupper()
            assert "  " not in sentence and " ." not in sentence and " ," not in sentence


@each_language
def test_stories_have_four_to_eight_sentences_and_use_every_role(language: StoryLanguage) -> None:
    for plot in language.plots:
        assert sum("" not in step for step in plot.steps) >= 4
        assert len(plot.steps) <= 8
        text = " ".join(sentence for step in plot.steps for sentence in step)
        assert set(re.findall(r"{(\w+)", text)) == set(plot.roles)


@each_language
def test_variety(language: StoryLanguage) -> None:
    assert len(set(language.pools["child"])) >= 30
    assert len(set(language.pools["thing"])) >= 30
    assert len(set(language.pools["place"])) >= 15
    assert len(language.plots) >= 12
    assert sum(len(step) for plot in language.plots for step in plot.steps) >= 10 * len(language.plots)
    assert all(len(set(pool)) == len(pool) for pool in language.pools.values())


def test_words_of_a_language_fit_a_small_tokenizer() -> None:
    words: dict[str, set[str]] = {"en": set(), "tr": set()}
    for document in stories(0, 20_000):
        words[document.language].update(re.findall(r"\w+", document.text))
    assert len(words["en"]) < 700
    assert len(words["tr"]) < 1400


def test_conversations_are_laid_out_turn_by_turn() -> None:
    turn = r"<\|{}\|>\n[^\n<>|]+\n<\|endoftext\|>\n"
    pair = turn.format("user") + turn.format("assistant")
    whole = re.compile(f"(?:{turn.format('system')})?(?:{pair}){{1,3}}")
    chats = [document.text for document in stories(5, 5000) if document.kind == "chat"]
    assert len(chats) > 1000 and all(whole.fullmatch(text) for text in chats)
    opening = re.compile(f"(?:{turn.format('system')})?(?:{pair})?{turn.format('user')}<\\|assistant\\|>\n")
    for question in held_out_questions(5, 200):
        if question.kind == "chat":
            assert opening.fullmatch(question.prompt)
        else:
            assert (
                question.prompt.endswith(f"\n{BY_CODE[question.language].answer_label}") and question.answer
            )


def test_one_name_keeps_its_pronouns() -> None:
    girls = {person for person in BY_CODE["en"].pools["child"] if vars(person)["he"] == "she"}
    for document in islice((d for d in stories(9, 20_000) if d.language == "en" and d.kind == "story"), 4000):
        people = set(re.findall(r"\w+", document.text)) & set(BY_CODE["en"].pools["child"])
        if people and people <= girls and not re.search(r"father|uncle|neighbour", document.text):
            assert not re.search(r"\b([Hh]e|[Hh]im|[Hh]is)\b", document.text), document.text


def test_english_articles_follow_the_sound() -> None:
    assert [with_article(word) for word in ("apple", "ball", "owl", "umbrella")] == [
        "an apple",
        "a ball",
        "an owl",
        "an umbrella",
    ]
    text = " ".join(document.text for document in stories(2, 20_000) if document.language == "en")
    assert not re.search(r"\ba [aeio]|\ban [^aeiou]", text)


@pytest.mark.parametrize(
    ("word", "softened", "forms"),
    [
        ("top", "", "topu topun topa topta toptan topu topunu topunun topuna"),
        ("kitap", "kitab", "kitabı kitabın kitaba kitapta kitaptan kitabı kitabını kitabının kitabına"),
        ("uçurtma", "", "uçurtmayı uçurtmanın uçurtmaya uçurtmada uçurtmadan uçurtması uçurtmasını"),
        ("köpek", "köpeğ", "köpeği köpeğin köpeğe köpekte köpekten köpeği köpeğini köpeğinin köpeğine"),
        ("kedi", "", "kediyi kedinin kediye kedide kediden kedisi kedisini kedisinin kedisine"),
        ("yüzük", "yüzüğ", "yüzüğü yüzüğün yüzüğe yüzükte yüzükten yüzüğü yüzüğünü yüzüğünün yüzüğüne"),
        ("flüt", "", "flütü flütün flüte flütte flütten flütü flütünü flütünün flütüne"),
        ("kutu", "", "kutuyu kutunun kutuya kutuda kutudan kutusu kutusunu kutusunun kutusuna"),
        ("ayı", "", "ayıyı ayının ayıya ayıda ayıdan ayısı ayısını ayısının ayısına"),
        ("kuş", "", "kuşu kuşun kuşa kuşta kuştan kuşu kuşunu kuşunun kuşuna"),
        ("anne", "", "anneyi annenin anneye annede anneden annesi annesini annesinin annesine"),
        ("dört", "dörd", "dördü dördün dörde dörtte dörtten dördü dördünü dördünün dördüne"),
    ],
)
def test_turkish_nouns(word: str, softened: str, forms: str) -> None:
    cases = ("acc", "gen", "dat", "loc", "abl", "own", "own_acc", "own_gen", "own_dat")
    built = noun(word, softened)
    assert forms.split() == [built.form(case) for case in cases][: len(forms.split())]


@pytest.mark.parametrize(
    ("person", "forms"),
    [
        ("Ali", "Ali'yi Ali'nin Ali'ye Ali'de Ali'den de"),
        ("Ayşe", "Ayşe'yi Ayşe'nin Ayşe'ye Ayşe'de Ayşe'den de"),
        ("Murat", "Murat'ı Murat'ın Murat'a Murat'ta Murat'tan da"),
        ("Zeynep", "Zeynep'i Zeynep'in Zeynep'e Zeynep'te Zeynep'ten de"),
        ("Ömer", "Ömer'i Ömer'in Ömer'e Ömer'de Ömer'den de"),
        ("Yusuf", "Yusuf'u Yusuf'un Yusuf'a Yusuf'ta Yusuf'tan da"),
        ("Irmak", "Irmak'ı Irmak'ın Irmak'a Irmak'ta Irmak'tan da"),
        ("Arda", "Arda'yı Arda'nın Arda'ya Arda'da Arda'dan da"),
        ("İpek", "İpek'i İpek'in İpek'e İpek'te İpek'ten de"),
    ],
)
def test_turkish_names(person: str, forms: str) -> None:
    built = name(person)
    assert forms.split() == [built.form(case) for case in ("acc", "gen", "dat", "loc", "abl", "too")]


def test_turkish_copula_and_capitals() -> None:
    assert [noun(colour).form("is_") for colour in ("sarı", "yeşil", "siyah", "beyaz", "turuncu")] == [
        "sarıdır",
        "yeşildir",
        "siyahtır",
        "beyazdır",
        "turuncudur",
    ]
    assert [capitalise(word) for word in ("iki", "ıslak", "ördek", "İpek")] == [
        "İki",
        "Islak",
        "Ördek",
        "İpek",
    ]


def test_conversations_are_made_as_the_text_is_and_hold_no_held_out_question() -> None:
    made = list(conversations(0, 4000))
    assert made == list(conversations(0, 4000)) and made[:50] == list(conversations(0, 50))
    assert not any(check_conversation(conversation) for conversation in made)
    languages = Counter(conversation.metadata["language"] for conversation in made)
    assert languages["tr"] == pytest.approx(2000, abs=120)
    asked = {message.content for one in made for message in one.messages if message.role == "user"}
    held_out = [question for question in held_out_questions(1, 400) if question.kind == "chat"]
    assert not any(question.messages[-1].content in asked for question in held_out)
    for question in held_out:
        turns = "".join(f"<|{m.role}|>\n{m.content}\n<|endoftext|>\n" for m in question.messages)
        assert question.prompt == f"{turns}<|assistant|>\n"
