"""Streaming: nothing lost or repeated, nothing held out is trained on, and every state goes on with the next token."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mm_rec.data.batches import RowBatches
from mm_rec.data.mixture import Mixture
from mm_rec.data.streaming import (
    DocumentReader,
    RowStream,
    StreamSource,
    first_held_out,
    plan_streams,
    stream_batches,
)
from mm_rec.errors import CheckpointError, DataError
from mm_rec.models.cross_entropy import IGNORE_INDEX
from mm_rec.tokenizers.loading import encode_documents

FRACTION = 0.2


@pytest.fixture(autouse=True)
def _small_encoding_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some 5 documents at once, so that a few files already have many borders."""
    monkeypatch.setattr("mm_rec.data.streaming._BATCH_CHARACTERS", 150)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five files of 30 documents: plain, packed, rows of JSON."""
    for number in range(5):
        texts = [f"document {number}-{i} " + "ab" * (i % 9) for i in range(30)]
        if number < 3:
            (tmp_path / f"{number}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
        else:
            (tmp_path / f"{number}.txt.gz").write_bytes(gzip.compress("\n\n".join(texts).encode()))
    return tmp_path


def stream(*folders: Path, **options: Any) -> dict[str, StreamSource]:
    return plan_streams(
        {folder.name: [str(folder)] for folder in folders},
        **{
            "text_field": "text",
            "documents": "blank-line",
            "validation_fraction": FRACTION,
            "validation_sources": [],
            **options,
        },
    )


def batches(
    sources: dict[str, StreamSource],
    tokenizer: Any,
    rows: int = 7,
    micro: int = 2,
    times: int = 2,
    **options: Any,
) -> RowBatches:
    weights = options.pop("weights", [1.0] * len(sources))
    mixture = Mixture(list(sources), [(0, weights)])
    return stream_batches(
        sources, mixture, tokenizer, options.pop("seq_len", 20), micro, times, seed=options.pop("seed", 3),
        shuffle_rows=rows,
    )  # fmt: skip


def reader_of(run: RowBatches) -> DocumentReader:
    (source,) = run.sources.values()
    assert isinstance(source, RowStream)
    return source.reader


def steps(run: RowBatches, first: int, count: int) -> Iterator[dict[str, torch.Tensor]]:
    for step in range(first, first + count):
        for micro in range(run.accumulation):
            yield run.batch_at(step, micro)


def rows_of(found: Iterator[dict[str, torch.Tensor]], name: str = "input_ids") -> list[list[int]]:
    return torch.cat([batch[name] for batch in found]).tolist()


def test_special_tokens_in_a_stream_are_text_and_said_once(tmp_path: Path, byte_tokenizer: Any) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"document {i} <s> or </s>" for i in range(30)))
    sources, said = stream(tmp_path), list[str]()
    mixture = Mixture(list(sources), [(0, [1.0])])
    run = stream_batches(sources, mixture, byte_tokenizer, 20, 2, 1, seed=3, shuffle_rows=1, say=said.append)
    ids = rows_of(steps(run, 0, 30))
    assert len(said) == 1 and said[0].endswith("are read as plain text: </s>, <s>")
    text = byte_tokenizer.decode([*ids[0], *itertools.chain.from_iterable(row[1:] for row in ids[1:])])
    assert text.count(" <s> or </s></s><s>document ") > 10


def test_unshuffled_rows_are_the_training_documents_one_after_the_other(
    folder: Path, byte_tokenizer: Any
) -> None:
    """A buffer of one row shuffles nothing. Over two epochs every token stands in its place, each a label once."""
    source = stream(folder)
    trained = list(source[folder.name].texts("train"))
    held = list(source[folder.name].texts("validation"))
    assert len(trained) + len(held) == 150 and 10 < len(held) < 60
    run = batches(source, byte_tokenizer, rows=1)
    total = sum(len(row) for row in encode_documents(byte_tokenizer, trained))
    found = list(steps(run, 0, 2 * total // (19 * 4) + 1))
    ids, labels = rows_of(iter(found)), rows_of(iter(found), "labels")
    text = [*ids[0], *itertools.chain.from_iterable(row[1:] for row in ids[1:])]
    assert all(row[-1] == following[0] for row, following in itertools.pairwise(ids))
    assert all("attention_mask" not in batch for batch in found)
    decoded = (
        byte_tokenizer.decode(text[: 2 * total]).removeprefix("<s>").removesuffix("</s>").split("</s><s>")
    )
    for epoch in (decoded[: len(trained)], decoded[len(trained) :]):
        assert sorted(epoch) == sorted(trained)
    # A new document and the first place of a row are no labels, everything else is.
    flags = [[IGNORE_INDEX if i == 0 or token == byte_tokenizer.bos_token_id else token for i, token in enumerate(row)]
             for row in ids]  # fmt: skip
    assert labels == flags
    documents = rows_of(iter(found), "document_ids")
    starts = [
        [int(i > 0 and token == byte_tokenizer.bos_token_id) for i, token in enumerate(row)] for row in ids
    ]
    assert documents == [list(itertools.accumulate(row)) for row in starts]


def test_the_buffer_changes_only_the_order(folder: Path, byte_tokenizer: Any) -> None:
    source = stream(folder)
    plain = rows_of(steps(batches(source, byte_tokenizer, rows=1), 0, 40))
    run = batches(source, byte_tokenizer, rows=16)
    mixed = rows_of(steps(run, 0, 30))
    waiting = run.state_tensors()[f"{folder.name}.buffer"].tolist()
    assert len(waiting) == 16
    assert sorted(mixed + waiting) == sorted(plain[: len(mixed) + 16])
    assert mixed != plain[: len(mixed)]
    assert rows_of(steps(batches(source, byte_tokenizer, rows=16, seed=4), 0, 30)) != mixed


def test_files_come_in_another_order_every_epoch(folder: Path, byte_tokenizer: Any) -> None:
    run = batches(stream(folder), byte_tokenizer, rows=1)
    seen: dict[int, list[str]] = {}
    reader = reader_of(run)
    while reader.epoch < 4:
        texts = reader.batch()
        seen.setdefault(reader.epoch, []).extend(texts)
    assert len({text.split("-")[0] for text in seen[1]}) == 5
    orders = {tuple(dict.fromkeys(text.split("-")[0] for text in seen[epoch])) for epoch in (1, 2, 3)}
    assert len(orders) > 1


@pytest.mark.parametrize("done", [1, 2, 9, 36, 44, 71])
def test_a_saved_state_goes_on_with_the_next_token(
    done: int, folder: Path, tmp_path: Path, byte_tokenizer: Any
) -> None:
    """Through JSON and safetensors, in the middle of files and across epoch borders (an epoch is about 38 steps)."""
    source = stream(folder)
    whole = batches(source, byte_tokenizer)
    expected = rows_of(steps(whole, 0, 90))
    assert whole.epoch(0) >= 2
    first = batches(source, byte_tokenizer)
    read = rows_of(steps(first, 0, done))
    state = json.loads(json.dumps(first.state_dict()))
    save_file(first.state_tensors(), tmp_path / "data.safetensors")
    second = batches(stream(folder), byte_tokenizer, micro=4, times=1)
    second.load_state_dict(state, load_file(tmp_path / "data.safetensors"))
    assert second.state_dict() == first.state_dict()
    assert all(
        torch.equal(tensor, first.state_tensors()[name]) for name, tensor in second.state_tensors().items()
    )
    assert read + rows_of(steps(second, done, 90 - done)) == expected
    assert second.state_dict() == whole.state_dict()


def test_several_sources_keep_their_shares_and_their_states(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Any
) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "one.txt").write_text("\n\n".join(f"OTHER {number} TEXT" for number in range(90)))
    source = stream(folder, other)
    run = batches(source, byte_tokenizer, weights=[3, 1])
    found = rows_of(steps(run, 0, 20))
    chosen, _ = run.mixture.assign(0, 80)
    capitals = [sum(65 <= ord(letter) <= 90 for letter in byte_tokenizer.decode(row)) > 3 for row in found]
    assert capitals == (chosen == 1).tolist() and sum(capitals) == 20
    again = batches(source, byte_tokenizer, weights=[3, 1])
    again.load_state_dict(run.state_dict(), run.state_tensors())
    assert rows_of(steps(again, 20, 20)) == rows_of(steps(run, 20, 20))


def test_batches_can_only_be_taken_in_order(folder: Path, byte_tokenizer: Any) -> None:
    run = batches(stream(folder), byte_tokenizer)
    run.batch_at(0, 0)
    with pytest.raises(AssertionError):
        run.batch_at(0, 0)
    with pytest.raises(AssertionError):
        run.batch_at(1, 0)


def test_memory_holds_the_buffer_and_one_encoding_batch(folder: Path, byte_tokenizer: Any) -> None:
    run = batches(stream(folder), byte_tokenizer, rows=5)
    for step in range(60):
        for _ in steps(run, step, 1):
            tensors = run.state_tensors()
            assert tensors[f"{folder.name}.buffer"].shape == (5, 20)
            assert tensors[f"{folder.name}.ids"].numel() <= 20 + 2 * 150


def test_held_out_documents_are_the_first_and_only_as_many_as_asked(
    folder: Path, byte_tokenizer: Any
) -> None:
    source = stream(folder)[folder.name]
    everything = list(source.texts("validation"))
    some = list(first_held_out(source, byte_tokenizer, 100))
    assert some == everything[: len(some)] and 0 < len(some) < len(everything)
    sizes = [len(row) for row in encode_documents(byte_tokenizer, some)]
    assert sum(sizes[:-1]) < 100 <= sum(sizes)
    none = stream(folder, validation_fraction=1e-9)[folder.name]
    with pytest.raises(DataError, match="no document is held out"):
        list(first_held_out(none, byte_tokenizer, 100))


def test_documents_of_separate_validation_files_are_not_trained_on(folder: Path, tmp_path: Path) -> None:
    held = tmp_path / "held.jsonl"
    copied = [json.loads(line)["text"] for line in (folder / "1.jsonl").read_text().splitlines()[:4]]
    held.write_text("\n".join(json.dumps({"text": text}) for text in copied))
    files = sorted(path for path in folder.iterdir() if path != held)
    sources = plan_streams(
        {"text": [str(path) for path in files]}, text_field="text", documents="blank-line", validation_fraction=0.2,
        validation_sources=[str(held)],
    )  # fmt: skip
    trained = list(sources["text"].texts("train"))
    assert len(trained) == 146 and not set(copied) & set(trained)


def test_a_text_of_which_everything_is_held_out_is_refused(folder: Path, byte_tokenizer: Any) -> None:
    run = batches(stream(folder, validation_fraction=0.999999), byte_tokenizer)
    with pytest.raises(DataError, match="no document to train on"):
        run.batch_at(0)


def test_a_damaged_row_is_named_when_it_is_met(folder: Path, byte_tokenizer: Any) -> None:
    path = folder / "2.jsonl"
    path.write_text(path.read_text() + '\n{"text": ')
    run = batches(stream(folder), byte_tokenizer)
    with pytest.raises(DataError, match=r"2\.jsonl:31"):
        rows_of(steps(run, 0, 60))


def replace(path: Path, old: str, new: str) -> None:
    content = path.read_text(encoding="utf-8")
    assert content.count(old) == 1
    path.write_text(content.replace(old, new), encoding="utf-8")


def test_what_was_read_may_not_change_and_what_was_not_may(folder: Path, byte_tokenizer: Any) -> None:
    for name in ("3.txt.gz", "4.txt.gz"):
        (folder / name).unlink()
    run = batches(stream(folder), byte_tokenizer)
    while len(run.state_dict()["streams"][folder.name]["reader"]["finished"]) != 1:
        rows_of(steps(run, run.state_dict()["row"] // 4, 1))
    state, tensors = run.state_dict(), run.state_tensors()
    reader = state["streams"][folder.name]["reader"]
    assert 0 < reader["documents"] < 30
    finished, begun, ahead = reader_of(run)._order()

    def load() -> None:
        batches(stream(folder), byte_tokenizer).load_state_dict(state, tensors)

    replace(begun, f"{begun.stem}-29 ", "changed but not read before ")
    replace(ahead, f"{ahead.stem}-3 ", "changed and longer ")
    load()
    replace(begun, f"{begun.stem}-0 ", f"{begun.stem}+0 ")
    with pytest.raises(CheckpointError, match=f"{begun.name}: this file has changed"):
        load()
    replace(begun, f"{begun.stem}+0 ", f"{begun.stem}-0 ")
    replace(finished, f"{finished.stem}-5 ", "longer than before ")
    with pytest.raises(CheckpointError, match=f"{finished.name}: this file has changed"):
        load()
    (folder / "new.jsonl").write_text('{"text": "one more"}')
    with pytest.raises(CheckpointError, match=r"had 3 files .* has 4 now .*new\.jsonl"):
        load()


def test_a_state_is_taken_back_only_with_the_same_settings(folder: Path, byte_tokenizer: Any) -> None:
    run = batches(stream(folder), byte_tokenizer)
    rows_of(steps(run, 0, 2))
    for options, message in (
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"rows": 8}, "shuffle_rows was 7 and is 8"),
    ):
        with pytest.raises(CheckpointError, match=message):
            batches(stream(folder), byte_tokenizer, **options).load_state_dict(
                run.state_dict(), run.state_tensors()
            )
