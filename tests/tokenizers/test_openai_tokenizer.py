"""OpenAI's tokenizers give tiktoken's ids, and the simple one gives every string back without a download."""

from __future__ import annotations

import hashlib
import json
import random
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiktoken
from tiktoken_ext import openai_public
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mm_rec.errors import MissingExtraError, TokenizerError
from mm_rec.tokenizers.loading import encode_document, fingerprint, load_tokenizer, vocabulary_size
from mm_rec.tokenizers.openai_tokenizer import convert_encoding, get_tokenizer, simple_tokenizer
from mm_rec.tokenizers.special_tokens import CHAT_TOKENS, SPECIAL_TOKENS

ENCODINGS = {  # model: (encoding, ids before ours)
    "gpt-4": ("cl100k_base", 100_277),
    "gpt-4o": ("o200k_base", 200_019),
    "text-davinci-003": ("p50k_base", 50_281),
    "davinci": ("r50k_base", 50_257),
}
TURKISH = "İstanbul'da IĞDIR ığdır İĞNE iğne şarkı ŞARKI çöğürcü düğün Ağrı kâğıt ılık ıhlamur"
TEXTS = {
    "empty": "",
    "turkish": TURKISH,
    "decomposed": unicodedata.normalize("NFD", TURKISH),
    "dotted": "İ i̇ I ı Iİıi İİİ aİb İ'nin I'VE we'Ve DON'T don't 'ſ x'Ll",
    "windows": "one\r\ntwo\r\n\r\nthree\r \r\n \n",
    "spaces": "   a  b   c    ",
    "only spaces": " " * 300,
    "spaces and lines": " \n  \n\n   x\n \t\n  ",
    "lines at the end": "x \n\n  ",
    "many spaces inside": "if x:" + " " * 97 + "y\n" + "\t" * 41 + "z",
    "digits": "1 12 123 1234 12345678901234567890 3.14159 ١٢٣٤ ²³ Ⅷ ½",
    "combining": "e\u0301\u0302\u0303 \u0301 \u0301\u0301a क्षि นี้ a\u20dd",
    "emoji": "👍🏽 👩‍👩‍👧‍👦 🇹🇷 ☕️ 👨🏿‍🚀🏴‍☠️",
    "nul": "\0 a\0b \0\0\n\0",
    "control": "".join(map(chr, range(32))) + "\x7f\x85\u2028\u2029",
    "odd spaces": "a\u00a0b\u2003c\u200bd\ufeffe\u3000f \u00a0 \u3000 x",
    "scripts": "Ελληνικά кириллица 日本語 العربية עברית हिन्दी 한국어 𐍈 ǅungla ᾼ",
    "runs": "-" * 37 + "=" * 64 + "aaaaaaa" * 29 + "!?/\\" * 9 + "\n/",
    "noncharacters": "\ufdd0\uffff\U0010ffff\ue000 \ufffd",
}


def random_texts(count: int, seed: int) -> list[str]:
    """Strings of white space, contractions, letters, digits and code points from all of Unicode."""
    draw = random.Random(seed)
    likely = [
        *" \t\n\r\0",
        *"abişığüöçİIŞĞ",
        "  ",
        "\r\n",
        "'s",
        "'LL",
        "the ",
        "123",
        "old ",
        "\u0301",
        "👩‍👧",
    ]

    def part() -> str:
        kind = draw.random()
        if kind < 0.7:
            return draw.choice(likely)
        return chr(draw.randrange(0xD800) if kind < 0.9 else draw.randrange(0xE000, 0x110000))

    return ["".join(part() for _ in range(draw.randrange(40))) for _ in range(count)]


@pytest.fixture
def without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cached ranks, and a proxy that refuses every connection."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def small_ranks() -> dict[bytes, int]:
    """Ranks as OpenAI's are made, of the texts above: every byte, then what was joined, in order."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator([*TEXTS.values()] * 3, trainer)
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    byte_of = {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}
    return {bytes(byte_of[c] for c in piece): rank for piece, rank in tokenizer.get_vocab().items()}


@pytest.fixture(scope="module")
def ranks_folder(real_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OpenAI's ranks under the names by which tiktoken looks for them."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, _ in ENCODINGS.values():
        url = f"https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
        (folder / hashlib.sha1(url.encode()).hexdigest()).symlink_to(
            real_data(f"tok/{name}.tiktoken").resolve()
        )
    return folder


@pytest.fixture(scope="module", params=ENCODINGS)
def pair(
    request: pytest.FixtureRequest, ranks_folder: Path
) -> tuple[PreTrainedTokenizerFast, tiktoken.Encoding, int]:
    """Our tokenizer of a model, tiktoken's own, and the number of ids before ours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(ranks_folder))
        name, size = ENCODINGS[request.param]
        return get_tokenizer(request.param), tiktoken.get_encoding(name), size


@pytest.fixture(scope="module")
def simple() -> PreTrainedTokenizerFast:
    return simple_tokenizer()


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


# --- the conversion, on ranks that were made here ---


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base", "p50k_base"])
def test_converted_ranks_give_tiktokens_ids(
    name: str, small_ranks: dict[bytes, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: small_ranks)
    pattern = openai_public.ENCODING_CONSTRUCTORS[name]()["pat_str"]
    special = {"<|endoftext|>": len(small_ranks) + 3}
    ours = convert_encoding(pattern, small_ranks, special)
    theirs = tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=small_ranks, special_tokens=special)
    texts = [*TEXTS.values(), *random_texts(3000, seed=1)]
    for text, encoding in zip(texts, ours.encode_batch_fast(texts), strict=True):
        assert encoding.ids == theirs.encode_ordinary(text), repr(text)
        assert ours.decode(encoding.ids) == text
    assert ours.token_to_id("<|endoftext|>") == theirs.eot_token == len(small_ranks) + 3
    assert sorted(ours.get_vocab().values()) == list(range(theirs.n_vocab))


def test_a_token_that_no_join_makes_is_still_found_whole() -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"abcd": 256}
    ours = convert_encoding(r"\w+|\W", ranks, {})
    theirs = tiktoken.Encoding("gap", pat_str=r"\w+|\W", mergeable_ranks=ranks, special_tokens={})
    assert ours.encode("abcd abcde").ids == theirs.encode_ordinary("abcd abcde") == [256, 32, *b"abcde"]


# --- on OpenAI's ranks ---


def test_every_edge_string_agrees_with_tiktoken(
    pair: tuple[PreTrainedTokenizerFast, tiktoken.Encoding, int],
) -> None:
    ours, theirs, _ = pair
    for text in [*TEXTS.values(), *random_texts(1000, seed=2)]:
        ids = ids_of(ours, text)
        assert ids == theirs.encode_ordinary(text), repr(text)
        assert ours.decode(ids) == text


def test_contexts_of_every_character_agree_with_tiktoken(
    pair: tuple[PreTrainedTokenizerFast, tiktoken.Encoding, int],
) -> None:
    ours, theirs, _ = pair
    codes = [*range(0xD800), *range(0xE000, 0x10000), *range(0x1F000, 0x1FB00)]
    texts = [
        "\n".join(f"A{chr(c)}b '{chr(c)}  {chr(c)}{chr(c)}1 " for c in codes[i::500]) for i in range(500)
    ]
    for text, encoding in zip(texts, ours.backend_tokenizer.encode_batch_fast(texts), strict=True):
        assert encoding.ids == theirs.encode_ordinary(text)


def _documents(path: Path) -> Iterator[str]:
    if path.suffix == ".txt":
        yield path.read_text(encoding="utf-8")
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def _sample(folder: Path, size: int) -> list[str]:
    """Documents of a folder's files, in turn from each, of `size` bytes or a little more."""
    texts: list[str] = []
    files = [_documents(path) for path in sorted(folder.iterdir())]
    while files and size > 0:
        for file in list(files):
            text = next(file, None)
            if text is None:
                files.remove(file)
            else:
                texts.append(text)
                size -= len(text.encode())
    assert size <= 0
    return texts


@pytest.fixture(scope="module")
def real_text(real_data: Callable[[str], Path]) -> list[str]:
    """10 MB of documents, half of them Turkish and half English."""
    return [text for language in ("tr", "en") for text in _sample(real_data(language), 5_000_000)]


@pytest.mark.seldom(covers=["mm_rec/tokenizers/*"])
def test_ten_megabytes_of_real_text_agree_with_tiktoken(
    pair: tuple[PreTrainedTokenizerFast, tiktoken.Encoding, int], real_text: list[str]
) -> None:
    ours, theirs, _ = pair
    if theirs.name == "r50k_base":  # p50k_base without the runs of spaces: less will do
        real_text = real_text[::10]
    encodings = ours.backend_tokenizer.encode_batch_fast(real_text, add_special_tokens=False)
    differing = sum(
        encoding.ids != theirs.encode_ordinary(text)
        for text, encoding in zip(real_text, encodings, strict=True)
    )
    assert differing == 0


def test_special_tokens_keep_their_ids_and_ours_are_above(
    pair: tuple[PreTrainedTokenizerFast, tiktoken.Encoding, int],
) -> None:
    ours, theirs, before = pair
    assert ours.name_or_path == theirs.name
    assert theirs.n_vocab == before == ours.vocab_size
    for token in theirs.special_tokens_set:
        assert ids_of(ours, token) == [theirs.encode_single_token(token)]
    assert ours.eos_token == ours.bos_token == "<|endoftext|>" and ours.pad_token == "<|pad|>"
    added = ours.convert_tokens_to_ids(["<|pad|>", *CHAT_TOKENS])
    assert added == list(range(before, before + len(added)))
    assert len(ours) == vocabulary_size(ours) == before + len(added)


def test_special_tokens_in_a_text_are_ordinary_on_request(
    pair: tuple[PreTrainedTokenizerFast, tiktoken.Encoding, int],
) -> None:
    ours, theirs, _ = pair
    text = "a<|endoftext|>b <|user|>\n<|unused_100256|>"
    assert ours(text, split_special_tokens=True)["input_ids"] == theirs.encode_ordinary(text)
    ids = ours(text)["input_ids"]  # the next call is as before
    assert ours.eos_token_id in ids and ours.decode(ids) == text


@pytest.mark.parametrize("pair", ["gpt-4"], indirect=True)
def test_a_saved_tokenizer_is_the_same(
    pair: tuple[PreTrainedTokenizerFast, tiktoken.Encoding, int], tmp_path: Path
) -> None:
    ours = pair[0]
    ours.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert fingerprint(loaded) == fingerprint(ours)
    assert (len(loaded), loaded.chat_template) == (len(ours), ours.chat_template)
    text = "\n".join(TEXTS.values()) + "<|user|>\n"
    assert encode_document(loaded, text) == encode_document(ours, text)


# --- names and ranks that cannot be had ---


@pytest.mark.usefixtures("without_network")
@pytest.mark.parametrize(
    ("model_name", "encoding"),
    [
        *((name, encoding) for name, (encoding, _) in ENCODINGS.items()),
        ("gpt-4-turbo", "cl100k_base"),
        ("gpt-4-0613", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("gpt-3.5-turbo-0125", "cl100k_base"),
        ("gpt-4o-mini-2024-07-18", "o200k_base"),
        ("gpt2", "r50k_base"),
    ],
)
def test_the_ranks_of_a_model_are_asked_for_and_missed(model_name: str, encoding: str) -> None:
    with pytest.raises(
        TokenizerError, match=rf"of {model_name} needs the ranks of {encoding}.*TIKTOKEN_CACHE"
    ):
        get_tokenizer(model_name, fallback=False)


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(
        TokenizerError, match=r"'gpt4'; did you mean 'gpt-4'\? Known are simple, .*gpt-3\.5-turbo"
    ):
        get_tokenizer("gpt4")
    with pytest.raises(TokenizerError, match=r"'zzzz'\. Known are simple, fallback"):
        get_tokenizer("zzzz")


@pytest.mark.usefixtures("without_network")
def test_without_ranks_the_simple_tokenizer_comes_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"ranks of cl100k_base.*TIKTOKEN_CACHE_DIR.*are not those of gpt-4"):
        tokenizer = get_tokenizer("gpt-4")
    assert tokenizer.name_or_path == "simple" and len(tokenizer) == 32_000


@pytest.mark.usefixtures("without_network")
def test_damaged_ranks_are_not_used(tmp_path: Path) -> None:
    url = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    cached = tmp_path / "cache" / hashlib.sha1(url.encode()).hexdigest()
    cached.parent.mkdir()
    cached.write_bytes(b"IQ== 0\n")
    with pytest.raises(TokenizerError, match="could not be downloaded"):
        get_tokenizer("gpt-4", fallback=False)


@pytest.mark.usefixtures("without_network")
@pytest.mark.parametrize("name", ["simple", "fallback"])
def test_the_simple_tokenizer_needs_neither_network_nor_tiktoken(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("tiktoken", "tiktoken.model"):
        monkeypatch.setitem(sys.modules, module, None)
    with warnings.catch_warnings(action="error"):
        assert len(get_tokenizer(name)) == 32_000
    with pytest.raises(MissingExtraError, match=r"tokenizer of gpt-4 .*mm-rec\[tiktoken\]"):
        get_tokenizer("gpt-4")


# --- the simple tokenizer ---


def test_simple_has_exactly_32000_rows_and_its_specials_last(simple: PreTrainedTokenizerFast) -> None:
    assert len(simple) == simple.vocab_size == vocabulary_size(simple) == 32_000
    assert sorted(simple.get_vocab().values()) == list(range(32_000))
    specials = simple.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert specials == list(range(32_000 - len(SPECIAL_TOKENS), 32_000))
    assert simple.eos_token == "<|endoftext|>" and simple.pad_token == "<|pad|>"
    assert simple("a<|user|>")["input_ids"] == [97, simple.convert_tokens_to_ids("<|user|>")]


def test_simple_is_pinned(simple: PreTrainedTokenizerFast) -> None:
    pieces = [simple.decode([index]) for index in ids_of(simple, "Çocuk the IĞDIR'da 12 日本\n")]
    assert pieces == [
        *("Ço", "cu", "k", " th", "e", " IĞ", "DI", "R", "'", "da", " ", "1", "2", " ", "日", "本", "\n")
    ]
    # Bytes are their own ids; the rest is fixed, or saved models would lose their meaning.
    assert ids_of(simple, "\0\U0001fbff") == [0, *"\U0001fbff".encode()]
    assert fingerprint(simple)[:16] == "e7eaf20a8219ef93"


def test_simple_gives_every_string_back(simple: PreTrainedTokenizerFast) -> None:
    texts = [*TEXTS.values(), *random_texts(3000, seed=3), "a<|endoftext|>b <|user|>\n", "▁Ġ Ċ <0x0A>"]
    texts += ["".join(map(chr, range(start, start + 0x400))) for start in range(0, 0xD800, 0x400)]
    texts += ["".join(map(chr, range(start, start + 0x4000))) for start in (0xE000, 0x1C000, 0x10C000)]
    for text, encoding in zip(texts, simple.backend_tokenizer.encode_batch_fast(texts), strict=True):
        assert simple.decode(encoding.ids) == text


def test_simple_is_saved_and_loaded_as_it_is(simple: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    simple.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert fingerprint(loaded) == fingerprint(simple) and len(loaded) == 32_000
    assert encode_document(loaded, TURKISH) == encode_document(simple, TURKISH)


def test_half_a_surrogate_pair_is_refused(simple: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TypeError):
        simple("a\ud800b")


@pytest.mark.parametrize("size", [265, 9_000, 44_000])
def test_simple_of_another_size_gives_every_string_back_too(size: int) -> None:
    tokenizer = simple_tokenizer(size)
    assert len(tokenizer) == vocabulary_size(tokenizer) == size
    assert all(tokenizer.decode(ids_of(tokenizer, text)) == text for text in TEXTS.values())


@pytest.mark.parametrize("size", [0, 264, 100_000])
def test_a_size_that_cannot_be_is_refused(size: int) -> None:
    with pytest.raises(TokenizerError, match=f"from 265 to 44,[0-9]+ entries, not {size:,}"):
        simple_tokenizer(size)
