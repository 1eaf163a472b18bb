from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from mm_rec.errors import ConfigError, MismatchError, TokenizerError
from mm_rec.runs.files import hash_file
from mm_rec.tokenizers import training
from mm_rec.tokenizers.loading import fingerprint, load_tokenizer
from mm_rec.tokenizers.training import TokenizerConfig, TokenizerTrainingReport, draw_sample, train_tokenizer

Corpus = Callable[[], list[str]]


SMALL = TokenizerConfig(vocab_size=480, threads=1)


def refused(documents: list[str], config: TokenizerConfig, out: Path) -> str:
    with pytest.raises(TokenizerError) as caught:
        train_tokenizer(lambda: documents, config, out)
    assert not list(out.parent.glob(f"*{out.name}*")), "something was written"
    return str(caught.value)


def test_folder_is_complete(corpus: Corpus, trained: tuple[Path, TokenizerTrainingReport]) -> None:
    folder, report = trained
    assert sorted(path.name for path in folder.iterdir()) == [
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "training_report.json",
    ]
    assert report.vocab_size == 480
    assert report.documents == 6
    assert report.bytes_read == sum(len(text.encode()) for text in corpus())
    assert (report.proof.lines, report.proof.lines_with_unknown) == (180, 0)
    written = json.loads((folder / "training_report.json").read_text(encoding="utf-8"))
    assert written["config"] == SMALL.model_dump()
    assert written["proof"]["lines"] == 180
    assert written["fingerprint"] == report.fingerprint == fingerprint(load_tokenizer(folder))


def test_ids_and_roles_of_the_special_tokens(trained: tuple[Path, TokenizerTrainingReport]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    assert len(tokenizer) == 480
    assert tokenizer.convert_ids_to_tokens(list(range(13))) == [
        "<unk>",
        "<|endoftext|>",
        "<|pad|>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|developer|>",
        "<|tools|>",
        "<|tool_call|>",
        "<|tool|>",
        "\n",
        "\t",
        "<0x00>",
    ]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>",) * 2 + (
        "<|pad|>",
    )
    assert tokenizer.unk_token is None
    assert sorted(tokenizer.all_special_ids) == list(range(1, 10))
    assert tokenizer("old")["input_ids"] == [1, *tokenizer("old", add_special_tokens=False)["input_ids"]]


def test_training_is_deterministic_whatever_the_threads(
    corpus: Corpus, trained: tuple[Path, TokenizerTrainingReport], tmp_path: Path
) -> None:
    train_tokenizer(corpus, SMALL.replace(threads=2), tmp_path / "again")
    assert hash_file(tmp_path / "again" / "tokenizer.json") == hash_file(trained[0] / "tokenizer.json")


def test_progress_covers_every_stage(corpus: Corpus, tmp_path: Path) -> None:
    seen: dict[str, tuple[int, int | None]] = {}

    def progress(stage: str, done: int, total: int | None) -> None:
        seen[stage] = (done, total)

    report = train_tokenizer(corpus, SMALL, tmp_path / "out", progress)
    assert tuple(seen) == training.STAGES
    assert seen["reading"] == (report.bytes_read, None)
    assert seen["proving"] == (report.bytes_used, report.bytes_used)


def test_a_vocabulary_too_large_names_the_largest(corpus: Corpus, tmp_path: Path) -> None:
    message = refused(corpus(), TokenizerConfig(), tmp_path / "out")
    assert "32,000" in message
    largest = int(message.split("--vocab-size ")[1].split()[0])
    train_tokenizer(corpus, TokenizerConfig(vocab_size=largest), tmp_path / "fits")
    refused(corpus(), TokenizerConfig(vocab_size=largest + 1), tmp_path / "out")


def test_a_vocabulary_too_small_names_the_smallest(corpus: Corpus, tmp_path: Path) -> None:
    message = refused(corpus(), TokenizerConfig(vocab_size=100), tmp_path / "out")
    smallest = int(message.split("--vocab-size ")[1].split()[0])
    train_tokenizer(corpus, TokenizerConfig(vocab_size=smallest), tmp_path / "fits")


@pytest.mark.parametrize(
    "documents", [[], [""], ["  \n\t\n "], ["▅▅▅\n▁▁"]], ids=["none", "empty", "blank", "marks"]
)
def test_no_text_is_refused(documents: list[str], tmp_path: Path) -> None:
    assert "no text" in refused(documents, SMALL, tmp_path / "out")


def test_half_a_surrogate_pair_is_refused(tmp_path: Path) -> None:
    assert "document 2" in refused(["fine", "not \ud83d fine"], SMALL, tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value"),
    [("vocab_size", 0), ("character_coverage", 0.5), ("sample_bytes", 0), ("threads", 0), ("vocabsize", 500)],
)
def test_bad_configuration_is_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match="vocab_size" if key == "vocabsize" else key):
        TokenizerConfig.read({key: value})


def test_a_foreign_folder_is_never_replaced(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "novel.txt").write_text("mine")
    with pytest.raises(TokenizerError, match="books"):
        train_tokenizer(corpus, SMALL, tmp_path / "books")
    assert (tmp_path / "books" / "novel.txt").read_text() == "mine"


def test_an_earlier_tokenizer_is_replaced(corpus: Corpus, tmp_path: Path) -> None:
    train_tokenizer(corpus, SMALL, tmp_path / "out")
    report = train_tokenizer(corpus, SMALL.replace(vocab_size=470), tmp_path / "out")
    assert report.vocab_size == len(load_tokenizer(tmp_path / "out")) == 470


def test_a_failed_proof_writes_nothing(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = training.to_tokenizer_json

    def spoilt(model: Path) -> object:
        tokenizer = convert(model)
        tokenizer.normalizer = None
        return tokenizer

    monkeypatch.setattr(training, "to_tokenizer_json", spoilt)
    with pytest.raises(MismatchError, match=r"180 of 180 lines.*The old captain by the river"):
        train_tokenizer(corpus, SMALL, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_lines_that_sentencepiece_drops_in_silence_are_learnt(tmp_path: Path) -> None:
    long_line = " ".join(["uzunsatır"] * 30_000)
    rows = [long_line, "sütun\tbaşlık\t▅\tmavikuş " * 200, "▁▁kırmızıkuş▁ " * 200, "x\x00yeşilkuş " * 200]
    train_tokenizer(lambda: ["\n".join(rows)], TokenizerConfig(vocab_size=330), tmp_path / "out")
    model = SentencePieceProcessor(model_file=str(tmp_path / "out" / "tokenizer.model"))
    pieces = {model.id_to_piece(index) for index in range(model.get_piece_size())}
    assert {"▁uzunsatır", "sütun", "mavikuş", "yeşilkuş"} <= pieces
    assert any("kuş" in piece for piece in pieces)
    assert not any({"▅", "\ufdd0"} & set(piece) for piece in pieces)


def test_without_byte_fallback_unknown_characters_are_counted(corpus: Corpus, tmp_path: Path) -> None:
    config = TokenizerConfig(vocab_size=150, byte_fallback=False, character_coverage=0.98, threads=1)
    report = train_tokenizer(lambda: [*corpus(), "one ☂☂ umbrella ▁"], config, tmp_path / "out")
    assert report.proof.lines_with_unknown >= 1
    tokenizer = load_tokenizer(tmp_path / "out")
    ids = tokenizer("old ☂☂ song", add_special_tokens=False)["input_ids"]
    assert ids.count(0) == 1
    assert ids == SentencePieceProcessor(model_file=str(tmp_path / "out" / "tokenizer.model")).encode(
        "old ☂☂ song"
    )
    assert tokenizer.decode(tokenizer("old\n\tsong")["input_ids"][1:]) == "old\n\tsong"


def numbered(count: int) -> Iterator[str]:
    for first in range(0, count, 100):
        yield "\n".join(f"line {number:07d}" for number in range(first, first + 100))


def sample_numbers(config: TokenizerConfig, count: int = 20_000) -> list[int]:
    sample = draw_sample(numbered(count), config, lambda _: None)
    assert sample.bytes_used == sum(map(len, sample.lines)) <= config.sample_bytes
    assert sample.documents == count // 100
    return [int(line[5:]) for line in sample.lines]


def test_all_lines_are_taken_where_they_fit() -> None:
    assert sample_numbers(TokenizerConfig()) == list(range(20_000))


def test_sample_is_spread_seeded_and_full() -> None:
    config = TokenizerConfig(sample_bytes=12 * 2000)
    numbers = sample_numbers(config)
    assert len(numbers) == 2000
    assert numbers == sorted(set(numbers)) == sample_numbers(config)
    assert numbers != sample_numbers(config.replace(seed=43))
    tenths = Counter(number // 2000 for number in numbers)
    assert len(tenths) == 10
    assert all(150 < count < 250 for count in tenths.values()), tenths


def test_sample_memory_is_bounded_by_its_limit() -> None:
    config = TokenizerConfig(sample_bytes=12 * 1000)
    tracemalloc.start()
    try:
        draw_sample(numbered(100_000), config, lambda _: None)
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


def test_long_lines_are_cut_before_spaces_and_lose_nothing() -> None:
    text = " kelime" * 5000 + "x" * 20_000 + " son"
    sample = draw_sample([text], TokenizerConfig(), lambda _: None)
    lines = [line.decode() for line in sample.lines]
    assert "".join(lines) == text
    assert max(map(len, lines)) <= 8192
    assert all(line.startswith(" kelime") for line in lines[:4])
