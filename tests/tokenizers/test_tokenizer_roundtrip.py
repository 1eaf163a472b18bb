"""Every text comes back from its ids, and the converted tokenizer gives SentencePiece's ids."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mm_rec.tokenizers.conversion import escape, to_tokenizer_json, unescape, verify_conversion
from mm_rec.tokenizers.loading import encode_document, encode_documents, load_tokenizer
from mm_rec.tokenizers.training import TokenizerConfig, train_tokenizer

TURKISH = "İstanbul'da IĞDIR ığdır İĞNE iğne şarkı ŞARKI çöğürcü düğün Ağrı kâğıt ılık ıhlamur"
TEXTS = {
    "empty": "",
    "turkish": TURKISH,
    "decomposed": unicodedata.normalize("NFD", TURKISH),
    "compatibility": "ﬁne ①②③ ｆｕｌｌ　ｗｉｄｔｈ ½ ª",
    "spaces": "   a  b   c    ",
    "only spaces": "     ",
    "tabs": "\t\tname\tvalue\t",
    "newlines": "\n\nfirst\n\n\nsecond\n",
    "windows": "one\r\ntwo\r\n\r\nthree\r",
    "odd line ends": "a\vb\fc\x85d\u2028e\u2029f",
    "odd spaces": "a\u00a0b\u2003c\u200bd\ufeffe\u3000f",
    "control": "".join(map(chr, range(32))) + "\x7f",
    "emoji": "👍🏽 👩‍👩‍👧‍👦 🇹🇷 ☕️",
    "marks": "▁▂▃▄▅▆▇█ ▁ ▁▁ a▁b ▁a",
    "noncharacters": "\ufdd0\ufdd1\ufdd2 ▁\ufdd0▁ \ufdd0▁\ufdd1 \uffff \U0010ffff",
    "piece names": "<unk> <s> </s> <0x41> <0x0A> <pad> ▅ ⁇",
    "runs": "-" * 37 + " " + "=" * 64 + " " + "aaaaaaa" * 9,
    "scripts": "Ελληνικά кириллица 日本語 العربية עברית हिन्दी 𐍈",
    "specials": "a<|endoftext|>b <|pad|><|user|>\n<|system|> <|assistant|>",
    "nearly specials": "<|endoftext| > <|User|> <||> |>",
}


def random_texts(count: int, seed: int) -> list[str]:
    """Strings of white space, Turkish, marks, specials and code points from all of Unicode."""
    draw = random.Random(seed)
    likely = [
        *" \t\n\r\0",
        *"abişığüöçİIŞĞ",
        "  ",
        "the ",
        "old ",
        "▁",
        "\ufdd0",
        "\ufdd1",
        "\ufdd2",
        "\ufdd0▁",
    ]
    likely += ["<|endoftext|>", "<|pad|>", "<|us", "er|>", "<0x41>", "<unk>", "e\u0301", "👍"]

    def character() -> str:
        if draw.random() < 0.85:
            return draw.choice(likely)
        point = draw.randrange(0x110000 - 0x800)
        return chr(point if point < 0xD800 else point + 0x800)

    return ["".join(character() for _ in range(draw.randrange(60))) for _ in range(count)]


@pytest.mark.parametrize("name", TEXTS)
def test_text_comes_back_from_its_ids(tokenizer: PreTrainedTokenizerBase, folder: Path, name: str) -> None:
    text = TEXTS[name]
    bos, *ids = tokenizer(text)["input_ids"]
    assert bos == tokenizer.bos_token_id and tokenizer.decode(ids) == text
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == [bos, *ids]
    assert ids == SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode(escape(text))


def test_random_texts_come_back_and_agree_with_sentencepiece(folder: Path) -> None:
    texts = random_texts(4000, seed=7)
    tokenizer = load_tokenizer(folder)
    proof = verify_conversion(folder / "tokenizer.model", tokenizer.backend_tokenizer, texts)
    assert (proof.lines, proof.lines_with_unknown) == (4000, 0)


def test_random_texts_that_repeat_few_letters_agree_with_sentencepiece(tmp_path: Path) -> None:
    draw = random.Random(3)

    def words() -> list[str]:
        return [
            " ".join("".join(draw.choices("ab", k=draw.randrange(1, 9))) for _ in range(400))
            for _ in range(9)
        ]

    train_tokenizer(words, TokenizerConfig(vocab_size=500, threads=1), tmp_path / "ab")
    texts = ["".join(draw.choices("aaab ", k=80)) for _ in range(3000)]
    tokenizer = to_tokenizer_json(tmp_path / "ab" / "tokenizer.model")
    assert verify_conversion(tmp_path / "ab" / "tokenizer.model", tokenizer, texts).lines == 3000


def test_escape_is_one_to_one() -> None:
    texts = [*random_texts(2000, seed=11), "▁", "\ufdd0", "\ufdd0\ufdd1", "\ufdd0\ufdd2", "▁\ufdd1"]
    assert all(unescape(escape(text)) == text for text in texts)
    assert not any("▁" in escape(text) for text in texts)
    assert len({escape(text) for text in texts}) == len(set(texts))
    assert escape(TURKISH) == TURKISH


def test_a_text_is_its_lines_and_newlines(tokenizer: PreTrainedTokenizerBase) -> None:
    for text in [*TEXTS.values(), *random_texts(300, seed=5)]:
        newline = tokenizer.convert_tokens_to_ids("\n")
        joined: list[int] = []
        for number, line in enumerate(text.split("\n")):
            joined += [newline] * (number > 0) + tokenizer(line, add_special_tokens=False)["input_ids"]
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == joined


def test_nothing_merges_across_lines_words_and_columns(tokenizer: PreTrainedTokenizerBase) -> None:
    pieces = set(tokenizer.get_vocab())
    assert {"\n", "\t"} <= pieces
    assert not any(piece[1:].count("▁") for piece in pieces)
    assert not any(len(piece) > 1 and set("\n\t") & set(piece) for piece in pieces)


def test_specials_in_running_text_are_specials(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("old<|user|>\n<|endoftext|>")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[-3:] == ["<|user|>", "\n", "<|endoftext|>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "old\n"


def _lines(path: Path, limit: int) -> list[str]:
    """The first lines of a file or of its documents, newlines kept inside none."""
    lines: list[str] = []
    with path.open(encoding="utf-8") as file:
        for row in file:
            text = json.loads(row)["text"] if path.suffix == ".jsonl" else row
            lines += text.rstrip("\n").split("\n")
            if len(lines) >= limit:
                return lines[:limit]
    return lines


def test_real_text_agrees_with_sentencepiece(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    names = (
        "tr/daron_blog.jsonl",
        "tr/msdocs_visualstudio_mt.jsonl",
        "tr/laws.jsonl",
        "en/classic_books.jsonl",
    )
    samples = {name: _lines(real_data(name), 4000) for name in names}
    learnt = ["\n".join(lines[:2500]) for lines in samples.values()]
    report = train_tokenizer(lambda: learnt, TokenizerConfig(vocab_size=6000), tmp_path / "real")
    assert report.proof.lines == sum(line != "" for lines in samples.values() for line in lines[:2500])
    unseen = [line for lines in samples.values() for line in lines[2500:]]
    backend = load_tokenizer(tmp_path / "real").backend_tokenizer
    assert verify_conversion(tmp_path / "real" / "tokenizer.model", backend, unseen).lines == len(unseen)


def test_a_real_book_is_its_lines(real_data: Callable[[str], Path], folder: Path) -> None:
    lines = _lines(real_data("en/classic_books.jsonl"), 3000)
    tokenizer = load_tokenizer(folder)
    newline = tokenizer.convert_tokens_to_ids("\n")
    whole = encode_document(tokenizer, "\n".join(lines))[1:-1]
    by_line = [
        token for ids in encode_documents(tokenizer, lines) for token in [newline, *ids[1:-1].tolist()]
    ]
    assert whole == by_line[1:]
