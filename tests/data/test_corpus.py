from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mm_rec.cli.data import app
from mm_rec.data import corpus as module
from mm_rec.data import token_shards
from mm_rec.data.corpus import Corpus, write_corpus
from mm_rec.data.prepare import open_prepared, plan_sources, prepare_corpus
from mm_rec.data.streaming import plan_streams
from mm_rec.errors import ConfigError, DataError, TokenizerError
from mm_rec.runs.files import hash_folder
from mm_rec.tokenizers.loading import encode_documents, fingerprint

RNG = random.Random(1)
DOCUMENTS = ["".join(RNG.choices("abcçdeğıiİ\n ", k=RNG.randint(1, 80))) for _ in range(120)]


class CountingEncoder:
    """Stands in for `encode_documents`: counts the batches and stops, as by a kill, after `allowed`."""

    def __init__(self, allowed: int | None = None) -> None:
        self.allowed = allowed
        self.batches = 0
        self.lock = threading.Lock()

    def __call__(self, tokenizer: Any, texts: list[str], parse_specials: bool = False) -> list[Any]:
        if texts:
            with self.lock:
                if self.allowed is not None and self.batches >= self.allowed:
                    raise KeyboardInterrupt
                self.batches += 1
        return encode_documents(tokenizer, texts, parse_specials)


@pytest.fixture
def written(tmp_path: Path, byte_tokenizer: Any) -> Corpus:
    return write_corpus(DOCUMENTS, byte_tokenizer, tmp_path / "corpus", shard_bytes=900, threads=2)


def test_the_corpus_is_the_documents_in_their_order(written: Corpus, byte_tokenizer: Any) -> None:
    expected = encode_documents(byte_tokenizer, DOCUMENTS)
    assert expected[0][0] == byte_tokenizer.bos_token_id and expected[0][-1] == byte_tokenizer.eos_token_id
    whole = np.concatenate(expected)
    assert len(written.shards) > 4 and written.header.dtype == "uint16"
    assert written.tokens == len(whole) and written.documents == len(DOCUMENTS)
    assert written.text_bytes == sum(len(text.encode()) for text in DOCUMENTS)
    read = written.read(0, written.tokens)
    assert read.dtype == np.int64 and (read == whole).all()
    starts = np.cumsum([0, *map(len, expected)])[:-1]
    assert (written.document_starts(0, written.tokens) == starts).all()
    for _ in range(200):
        start, stop = sorted(RNG.choices(range(written.tokens + 1), k=2))
        assert (written.read(start, stop) == whole[start:stop]).all()
        inside = starts[(starts >= start) & (starts < stop)]
        assert (written.document_starts(start, stop) == inside).all()
    written.verify()


def test_the_number_of_threads_leaves_no_trace(tmp_path: Path, byte_tokenizer: Any) -> None:
    hashes = set()
    for threads in (1, 2, 7):
        out = tmp_path / str(threads)
        write_corpus(iter(DOCUMENTS), byte_tokenizer, out, shard_bytes=900, threads=threads)
        hashes.add(hash_folder(out))
    assert len(hashes) == 1


def test_a_large_vocabulary_is_stored_in_four_bytes(
    tmp_path: Path, byte_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "vocabulary_size", lambda _: 70_000)
    monkeypatch.setattr(
        token_shards,
        "encode_documents",
        lambda _, texts, parse=False: [np.array([65_536, 69_999]) for _ in texts],
    )
    corpus = write_corpus(["a", "b"], byte_tokenizer, tmp_path / "corpus")
    assert corpus.header.dtype == "uint32"
    assert corpus.read(0, 4).tolist() == [65_536, 69_999] * 2


@pytest.mark.parametrize("threads", [1, 3])
def test_a_killed_run_keeps_its_finished_shards(
    tmp_path: Path, written: Corpus, byte_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    out = tmp_path / "killed"
    total = len(written.shards)
    monkeypatch.setattr(token_shards, "encode_documents", CountingEncoder(allowed=2))
    with pytest.raises(KeyboardInterrupt):
        write_corpus(DOCUMENTS, byte_tokenizer, out, shard_bytes=900, threads=threads)
    with pytest.raises(DataError, match="no finished corpus"):
        Corpus.open(out)
    (out / ".00003.bin.999999.tmp").write_bytes(b"left by a kill")
    (out / "00003.bin").write_bytes(b"without its record")
    encoder = CountingEncoder()
    monkeypatch.setattr(token_shards, "encode_documents", encoder)
    resumed = write_corpus(DOCUMENTS, byte_tokenizer, out, shard_bytes=900, threads=threads)
    assert encoder.batches == total - 2
    assert hash_folder(out) == hash_folder(written.path)
    assert resumed.fingerprint == written.fingerprint


def test_a_second_run_encodes_only_what_changed(
    written: Corpus, byte_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changed = [*DOCUMENTS[:-1], DOCUMENTS[-1] + "!", "one more"]
    encoder = CountingEncoder()
    monkeypatch.setattr(token_shards, "encode_documents", encoder)
    progress: list[int] = []
    write_corpus(DOCUMENTS, byte_tokenizer, written.path, shard_bytes=900, progress=progress.append)
    assert encoder.batches == 0 and sum(progress) == written.text_bytes
    again = write_corpus(changed, byte_tokenizer, written.path, shard_bytes=900)
    assert 1 <= encoder.batches <= 2
    assert again.documents == len(changed) and again.fingerprint != written.fingerprint
    write_corpus(changed, byte_tokenizer, tmp_path / "fresh", shard_bytes=900)
    assert hash_folder(written.path) == hash_folder(tmp_path / "fresh")


def test_moving_the_border_between_documents_is_a_change(written: Corpus, byte_tokenizer: Any) -> None:
    joined = [DOCUMENTS[0] + DOCUMENTS[1][:1], DOCUMENTS[1][1:], *DOCUMENTS[2:]]
    before = written.document_starts(0, 200).tolist()
    again = write_corpus(joined, byte_tokenizer, written.path, shard_bytes=900)
    assert again.document_starts(0, 200).tolist() != before


def test_leftovers_of_other_settings_go(written: Corpus, byte_tokenizer: Any) -> None:
    (written.path / "notes.txt").write_text("mine")
    again = write_corpus(DOCUMENTS[:3], byte_tokenizer, written.path, settings={"documents": "line"})
    assert again.header.settings["documents"] == "line"
    names = {path.name for path in written.path.iterdir()}
    assert names == {"corpus.json", "00000.bin", "00000.index.npy", "00000.json", "notes.txt"}


def test_nothing_vouches_for_a_corpus_that_is_being_replaced(
    written: Corpus, byte_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_shards, "encode_documents", CountingEncoder(allowed=1))
    with pytest.raises(KeyboardInterrupt):
        write_corpus(DOCUMENTS[::-1], byte_tokenizer, written.path, shard_bytes=900, threads=1)
    with pytest.raises(DataError, match="no finished corpus"):
        Corpus.open(written.path)


@pytest.mark.parametrize("name", ["00002.bin", "00002.index.npy"])
def test_damage_is_found(written: Corpus, name: str, byte_tokenizer: Any) -> None:
    whole = hash_folder(written.path)
    content = (written.path / name).read_bytes()
    (written.path / name).write_bytes(content[:-2])
    with pytest.raises(DataError, match=f"{name} has .* bytes instead of .*Tokenize again"):
        Corpus.open(written.path)
    (written.path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="content has changed"):
        Corpus.open(written.path).verify()
    (written.path / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        Corpus.open(written.path)
    write_corpus(DOCUMENTS, byte_tokenizer, written.path, shard_bytes=900)
    assert hash_folder(written.path) == whole


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": 99}', '{"format": 1}', '{"format": 1, "shards": [{}]}']
)
def test_a_damaged_manifest(written: Corpus, content: str) -> None:
    (written.path / "corpus.json").write_text(content)
    with pytest.raises(DataError):
        Corpus.open(written.path)


def test_another_tokenizer_is_refused(written: Corpus, byte_tokenizer: Any) -> None:
    written.require_tokenizer(fingerprint(byte_tokenizer))
    with pytest.raises(TokenizerError, match="tokenize the text again"):
        written.require_tokenizer("0" * 64)


def test_no_documents(tmp_path: Path, byte_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no document"):
        write_corpus([], byte_tokenizer, tmp_path / "corpus")


def test_ids_beyond_the_vocabulary(
    tmp_path: Path, byte_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "vocabulary_size", lambda _: 100)
    with pytest.raises(TokenizerError, match="vocabulary has 100 entries"):
        write_corpus(DOCUMENTS, byte_tokenizer, tmp_path / "corpus")


def test_a_full_disk(tmp_path: Path, byte_tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"tokenizing the text needs about .* free"):
        write_corpus(DOCUMENTS, byte_tokenizer, tmp_path / "corpus", expected_bytes=10**18)
    assert not list((tmp_path / "corpus").iterdir())


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    rows = [json.dumps({"text": text}) for text in DOCUMENTS if text.strip()]
    (folder / "a.jsonl").write_text("\n".join(rows))
    (folder / "b.txt").write_text("First paragraph.\n\nSecond paragraph.\n")
    return folder


def test_sources_become_two_corpora(tmp_path: Path, sources: Path, byte_tokenizer: Any) -> None:
    plan = plan_sources([sources], validation_fraction=0.1)
    assert plan.documents == "blank-line"
    prepared = prepare_corpus(plan, byte_tokenizer, tmp_path / "out", shard_bytes=900)
    assert prepared.train.documents + prepared.validation.documents == plan.split.documents
    assert prepared.validation.text_bytes == plan.split.validation_bytes == plan.text_bytes("validation")
    assert prepared.train.text_bytes == plan.text_bytes("train")
    assert not set(plan.texts("train")) & set(plan.texts("validation"))
    opened = open_prepared(tmp_path / "out")
    assert opened.record == prepared.record and opened.record["rule"] == "hash"
    assert opened.train.fingerprint == prepared.train.fingerprint
    (tmp_path / "out" / "split.json").unlink()
    with pytest.raises(DataError, match="no finished data"):
        open_prepared(tmp_path / "out")


ARTICLES = [f"Article {number} says what the others do not." for number in range(60)]


@pytest.mark.parametrize(
    ("text", "rule", "said"),
    [
        ("\n\n".join(ARTICLES), "blank-line", "--documents blank-line)"),
        ("\n".join(ARTICLES), "line", "--documents line, because there is one block)"),
        ("\n\n".join([ARTICLES[1] * 10] * 3), "blank-line", "held out for validation: the end of the text"),
        (
            " ".join(["one", "long", "line"] * 200),
            "blank-line",
            "held out for validation: the end of the text",
        ),
    ],
)
def test_one_file_is_cut_until_something_can_be_held_out(
    tmp_path: Path, byte_tokenizer: Any, text: str, rule: str, said: str
) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "all.txt").write_text(text)
    plan = plan_sources([tmp_path / "text"])
    assert plan.documents == rule and said in "\n".join(plan.describe())
    prepared = prepare_corpus(plan, byte_tokenizer, tmp_path / "out")
    assert prepared.train.text_bytes == plan.text_bytes("train") > prepared.validation.text_bytes > 0
    assert open_prepared(tmp_path / "out").record == prepared.record
    streams = plan_streams(
        {"text": [str(tmp_path / "text")]},
        text_field="text", documents=None, validation_fraction=0.01, validation_sources=[],
    )  # fmt: skip
    assert streams["text"].documents == rule


def test_a_rule_that_is_asked_for_is_kept(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("\n".join(ARTICLES))
    plan = plan_sources([tmp_path / "all.txt"], documents="file")
    assert plan.documents == "file" and plan.split.rule == "end"
    assert "the end of the text, because it is one document" in plan.describe()[1]
    (tmp_path / "held.txt").write_text("Something else.")
    plan = plan_sources([tmp_path / "all.txt"], validation_sources=[tmp_path / "held.txt"])
    assert plan.documents == "blank-line" and plan.split.rule == "files"  # one document will do


def test_a_lopsided_split_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one paragraph\n\nand another\n")
    (tmp_path / "b.jsonl").write_text('{"text": " "}')
    lines = plan_sources([tmp_path]).describe()
    assert "a block between blank lines of .txt (--documents blank-line)" in lines[0]
    assert "1 of 2 documents" in lines[1] and lines[2].startswith("warning: ")
    assert lines[3] == "1 documents of white space alone were skipped"


def test_separate_validation_files_are_kept_out_of_training(
    tmp_path: Path, sources: Path, byte_tokenizer: Any
) -> None:
    held = tmp_path / "held.txt"
    held.write_text("Second paragraph.\n\nSomething else.\n")
    plan = plan_sources([sources], validation_sources=[held])
    assert plan.split.rule == "files" and plan.left_out == 1
    prepared = prepare_corpus(plan, byte_tokenizer, tmp_path / "out")
    assert prepared.validation.documents == 2
    assert "Second paragraph." not in set(plan.texts("train"))
    assert prepared.train.documents == plan.split.documents - 2
    with pytest.raises(DataError, match="no document is left to train on"):
        plan_sources([held], validation_sources=[held])
    held.write_text(" \n")
    with pytest.raises(DataError, match="no document but white space"):
        plan_sources([sources], validation_sources=[held])


def test_special_tokens_in_a_corpus_are_text_and_said(tmp_path: Path, byte_tokenizer: Any) -> None:
    byte_tokenizer.save_pretrained(tmp_path / "tokenizer")
    texts = [f"Line {number} says <s> and </s>." if number % 2 else f"Line {number}." for number in range(40)]
    (tmp_path / "c.txt").write_text("\n\n".join(texts))
    arguments = ["--tokenizer", str(tmp_path / "tokenizer"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(
        app, ["tokenize", str(tmp_path / "c.txt"), *arguments], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    assert "are read as plain text: </s> 20 times, <s> 20 times" in result.output.replace("\n", " ")
    train = open_prepared(tmp_path / "out").train
    ids = train.read(0, train.tokens).tolist()
    assert ids.count(byte_tokenizer.bos_token_id) == ids.count(byte_tokenizer.eos_token_id) == train.documents
    documents = byte_tokenizer.decode(ids).removeprefix("<s>").removesuffix("</s>").split("</s><s>")
    assert set(documents) <= set(texts) and len(documents) == train.documents
    plan = plan_sources([tmp_path / "c.txt"])  # what a chat layout rendered
    parsed = prepare_corpus(plan, byte_tokenizer, tmp_path / "parsed", parse_specials=True)
    ids = parsed.train.read(0, parsed.train.tokens).tolist()
    assert ids.count(byte_tokenizer.bos_token_id) > parsed.train.documents
    assert "are read as special tokens: </s> 20 times, <s> 20 times" in parsed.notes()[0]


def test_the_command(tmp_path: Path, sources: Path, byte_tokenizer: Any) -> None:
    byte_tokenizer.save_pretrained(tmp_path / "tokenizer")
    out = tmp_path / "out"
    arguments = ["tokenize", str(sources), "--tokenizer", str(tmp_path / "tokenizer"), "--out", str(out)]
    result = CliRunner().invoke(
        app, [*arguments, "--documents", "line", "--threads", "1"], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 0, result.output
    assert "a line of .txt (--documents line)" in result.output and "validation" in result.output
    open_prepared(out).train.require_tokenizer(fingerprint(byte_tokenizer))
    assert json.loads((out / "split.json").read_text())["documents_rule"] == "line"
    assert CliRunner().invoke(app, [*arguments, "--documents", "line"]).exit_code == 0  # the same goes on
    other = CliRunner().invoke(app, [*arguments, "--documents", "line", "--validation-fraction", "0.3"])
    assert isinstance(other.exception, ConfigError) and "--overwrite" in str(other.exception)
    again = [*arguments, "--documents", "line", "--validation-fraction", "0.3", "--overwrite"]
    assert CliRunner().invoke(app, again).exit_code == 0
