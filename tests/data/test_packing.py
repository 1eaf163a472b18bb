"""Packed conversations: full rows, nothing lost, nothing seen across, and a state carried where one is too long."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from comparing import relative
from conversations_made import made
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.data.batches import RowBatches
from mm_rec.data.conversations.dataset_reader import read_conversations
from mm_rec.data.conversations.preflight import preflight
from mm_rec.data.conversations.rendering import TokenizedExample, render_batch
from mm_rec.data.corpus import write_corpus
from mm_rec.data.mixture import Mixture
from mm_rec.data.packing import (
    PackedConversations,
    choose_seq_len,
    conversation_batches,
    count_rows,
    pack_best_fit,
)
from mm_rec.data.row_sources import PADDING, CorpusRows, PackedSequences, SeededRows
from mm_rec.errors import CheckpointError, ConfigError, DataError
from mm_rec.models.cross_entropy import IGNORE_INDEX
from mm_rec.models.forward import hidden_states, lm_head_of
from mm_rec.training.objectives import carried_next_token, next_token

ONE = Mixture(["all"], [(0, [1.0])])


@pytest.fixture
def rendered(tokenizer: PreTrainedTokenizerBase) -> list[TokenizedExample]:
    return list(render_batch(tokenizer, made(60, seed=1)))


def test_bins_hold_everything_once_and_never_too_much() -> None:
    for seed in range(20):
        chance = random.Random(seed)
        capacity = chance.randint(5, 300)
        lengths = [chance.randint(1, capacity) for _ in range(chance.randint(1, 400))]
        begun = [chance.randint(1, capacity) for _ in range(chance.randint(0, 20))]
        bins = pack_best_fit(lengths, capacity, begun)
        assert sorted(item for items in bins for item in items) == list(range(len(lengths)))
        used = [sum(lengths[item] for item in items) for items in bins]
        assert all(space <= capacity for space in used)
        assert all(first + more <= capacity for first, more in zip(begun, used, strict=False))
        # No two of the new bins could be one (best fit would have put the later one's items into the earlier).
        new = sorted(used[len(begun) :])
        assert len(new) < 2 or new[0] + new[1] > capacity
    with pytest.raises(ValueError, match="length 6"):
        pack_best_fit([6], 5)


def test_real_conversations_waste_less_than_two_percent(
    real_data: Callable[[str], Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    names = ("llamafactory_alpaca_en_demo.json", "gsm8k_train.jsonl")
    for name in names:
        conversations = read_conversations([real_data(f"instruct/{name}")]).conversations
        checked = preflight(tokenizer, conversations)
        lengths = [len(one.ids) for one in checked.rendered]
        for carry_state in (False, True):
            seq_len = choose_seq_len(lengths, carry_state)
            packed = PackedConversations(checked.rendered, seq_len, -(-max(lengths) // seq_len))
            assert packed.padding_share < 0.02, name


def batches(packed: PackedConversations, rows: int, accumulation: int = 1, seed: int = 0) -> RowBatches:
    return conversation_batches(
        {"all": packed}, ONE, packed.seq_len, rows, accumulation, seed, 2, carry_state=packed.carry_state
    )


def test_an_epoch_has_every_conversation_whole_with_its_mask(rendered: list[TokenizedExample]) -> None:
    packed = PackedConversations(rendered, 2048)
    seen = set()
    for step in range(len(packed)):
        batch = {name: tensor[0] for name, tensor in batches(packed, 1).batch_at(step).items()}
        for number in batch["document_ids"].unique().tolist():
            here = batch["document_ids"] == number
            if number == PADDING:
                assert (batch["labels"][here] == IGNORE_INDEX).all() and (batch["input_ids"][here] == 2).all()
                continue
            one = rendered[number]
            assert batch["input_ids"][here].tolist() == one.ids.tolist()
            labels = np.where(one.loss_mask, one.ids, IGNORE_INDEX)
            labels[0] = IGNORE_INDEX
            assert batch["labels"][here].tolist() == labels.tolist()
            seen.add(number)
    assert seen == set(range(len(rendered)))


def test_packed_logits_and_loss_are_those_of_each_conversation_alone(
    model: PreTrainedModel, rendered: list[TokenizedExample]
) -> None:
    packed = PackedConversations(rendered, 2048)
    batch = batches(packed, 3).batch_at(0)
    with torch.no_grad():
        hidden = hidden_states(model, batch)
        summed = next_token(torch.float32)(model, batch)["loss"]
        total, count = summed.total, summed.count
        nats, tokens = 0.0, 0
        pairs = [(row, n) for row in range(3) for n in batch["document_ids"][row].unique().tolist() if n >= 0]
        for row, number in pairs:
            one = rendered[number]
            ids = torch.from_numpy(one.ids.astype("int64"))[None]
            alone = model(input_ids=ids).logits[0]
            here = lm_head_of(model).logits(hidden[row, batch["document_ids"][row] == number])
            assert relative(here, alone) < 1e-9
            for place in np.flatnonzero(one.loss_mask):
                nats -= float(alone[place - 1].log_softmax(-1)[ids[0, place]])
                tokens += 1
    assert tokens == count
    assert float(total) == pytest.approx(nats, rel=1e-6)  # the loss is summed in float32


def test_rows_of_short_conversations_are_folded_and_nothing_is_lost_or_read_twice(
    rendered: list[TokenizedExample],
) -> None:
    longest = max(len(one.ids) for one in rendered)
    length = 1 << (longest - 1).bit_length()
    packed = PackedConversations(rendered, length, fold_rows=True)
    plain = PackedConversations(rendered, length)
    long = sum(len(one.ids) > length // 2 for one in rendered)
    assert 0 < packed.crosses_fold().sum() <= long and plain.crosses_fold().all()
    assert packed.padding_share < plain.padding_share + 0.05
    data = batches(packed, 2)
    shapes, seen = [], []
    for step in range(len(packed) // 2):
        batch = data.batch_at(step)
        shapes.append(tuple(batch["input_ids"].shape))
        for row in range(len(batch["document_ids"])):
            for number in batch["document_ids"][row].unique().tolist():
                if number == PADDING:
                    continue
                here = batch["document_ids"][row] == number
                one = rendered[number]
                assert batch["input_ids"][row][here].tolist() == one.ids.tolist()
                labels = np.where(one.loss_mask, one.ids, IGNORE_INDEX)
                labels[0] = IGNORE_INDEX
                assert batch["labels"][row][here].tolist() == labels.tolist()
                seen.append(number)
    assert set(shapes) == {(2, length), (4, length // 2)}
    assert len(seen) == len(set(seen)) >= len(rendered) - 2 * 40  # all but those of a last, odd column


def test_a_folded_batch_has_the_loss_of_one_that_is_not(
    build_model: Callable[[str], PreTrainedModel], rendered: list[TokenizedExample]
) -> None:
    model = build_model("llama")
    length = 1 << (max(len(one.ids) for one in rendered) - 1).bit_length()
    data = batches(PackedConversations(rendered, length, fold_rows=True), 2)
    folded = next(batch for step in range(20) if (batch := data.batch_at(step))["input_ids"].shape[0] == 4)
    whole = {name: tensor.view(2, length) for name, tensor in folded.items()}
    with torch.no_grad():
        results = [next_token(torch.float32)(model, batch)["loss"] for batch in (folded, whole)]
    assert results[0].count == results[1].count > 0
    assert float(results[0].total) == pytest.approx(float(results[1].total), rel=1e-6)


def test_what_one_conversation_says_changes_no_other(
    model: PreTrainedModel, rendered: list[TokenizedExample]
) -> None:
    packed = PackedConversations(rendered, 2048)
    batch = batches(packed, 1).batch_at(0)
    first, last = (int(n) for n in batch["document_ids"][0].unique()[[1, -1]])
    changed = {name: tensor.clone() for name, tensor in batch.items()}
    here = batch["document_ids"] == last
    changed["input_ids"][here] = 7
    others = (batch["document_ids"] != last) & (batch["document_ids"] >= 0)
    with torch.no_grad():
        one, other = hidden_states(model, batch), hidden_states(model, changed)
    assert (
        first != last and torch.equal(one[others], other[others]) and not torch.equal(one[here], other[here])
    )


def test_a_conversation_longer_than_a_row_is_carried_on(
    build_model: Callable[[str], PreTrainedModel], rendered: list[TokenizedExample]
) -> None:
    model = build_model("mmrec")
    length, rows = 128, 14
    packed = PackedConversations(rendered, length, rows)
    assert packed.carry_state
    objective = carried_next_token(torch.float32)
    data = batches(packed, 2, rows)
    nats, tokens, seen = 0.0, 0, []
    with torch.no_grad():
        for step in range(len(packed) // 2):
            for micro in range(rows):
                batch = data.batch_at(step, micro)
                assert bool(batch["carried"]) == (micro > 0)
                summed = objective(model, batch)["loss"]
                loss, count = summed.total, summed.count
                nats, tokens = nats + float(loss), tokens + count
            source = data.sources["all"]
            assert isinstance(source, SeededRows)
            columns = source.sampler.indices(data.mixture.assign(2 * step, 2)[1])
            seen += [segment.conversation for c in columns for row in packed.row_groups[c] for segment in row]
        expected, learnt = 0.0, 0
        for number in set(seen):
            one = rendered[number]
            ids = torch.from_numpy(one.ids.astype("int64"))[None]
            scores = model(input_ids=ids).logits[0].log_softmax(-1)
            starts = {segment.start for c in range(len(packed)) for row in packed.row_groups[c] for segment in row
                      if segment.conversation == number}  # fmt: skip
            for place in np.flatnonzero(one.loss_mask):
                if place not in starts:  # the first token of a row has none before it there
                    expected -= float(scores[place - 1, ids[0, place]])
                    learnt += 1
    assert tokens == learnt and nats == pytest.approx(expected, rel=1e-6)


def test_gradients_of_a_carried_conversation_end_at_its_rows(
    build_model: Callable[[str], PreTrainedModel], rendered: list[TokenizedExample]
) -> None:
    model = build_model("mmrec").train()
    longest = max(rendered, key=lambda one: len(one.ids))
    packed = PackedConversations([longest], 64, -(-len(longest.ids) // 64))
    data, objective = batches(packed, 1, packed.rows_per_group), carried_next_token(torch.float32)
    for micro in range(packed.rows_per_group):
        loss = objective(model, data.batch_at(0, micro))["loss"].total
        if loss.requires_grad:
            loss.backward()  # would fail if a graph of the row before were still needed
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_long_conversation_that_no_step_can_hold_is_refused(rendered: list[TokenizedExample]) -> None:
    with pytest.raises(DataError, match=r"a step reads 1 rows of 64 .*truncation by turns"):
        PackedConversations(rendered, 64)
    with pytest.raises(DataError, match="no conversation"):
        PackedConversations([], 64)


def test_batches_are_a_function_of_the_step_and_know_their_data(rendered: list[TokenizedExample]) -> None:
    packed = PackedConversations(rendered, 2048)
    one, other = batches(packed, 2), batches(packed, 2)
    for step in (5, 0, 11):
        assert all(
            torch.equal(one.batch_at(step)[name], tensor) for name, tensor in other.batch_at(step).items()
        )
    one.load_state_dict(other.state_dict())
    fewer = PackedConversations(rendered[:-1], 2048)
    for changed in (batches(packed, 3), batches(fewer, 2), batches(packed, 2, seed=1)):
        with pytest.raises(CheckpointError, match="trained on other batches"):
            changed.load_state_dict(one.state_dict())
    with pytest.raises(ConfigError, match="mixture"):
        conversation_batches({"b": packed}, ONE, 2048, 1, 1, 0, 2)


def test_text_beside_conversations_has_its_share_and_is_all_learnt(
    tokenizer: PreTrainedTokenizerBase, rendered: list[TokenizedExample], tmp_path: Path
) -> None:
    corpus = write_corpus((f"She sang old songs {i}. " * 30 for i in range(40)), tokenizer, tmp_path / "text")
    sequences = PackedSequences(corpus, 256)
    packed = PackedConversations(rendered, 256, 7)
    sources = {"all": packed, "text of the base": CorpusRows(sequences, 7)}
    mixture = Mixture(list(sources), [(0, [0.75, 0.25])])
    data = conversation_batches(sources, mixture, 256, 8, 7, 0, 2, packed.carry_state)
    of_text = 0
    for step in range(6):
        both = [data.batch_at(step, micro) for micro in range(2)]
        for row in range(8):
            first, second = (batch["document_ids"][row] for batch in both)
            learnt = (both[0]["labels"][row] != IGNORE_INDEX).float().mean()
            if learnt > 0.95:
                of_text += 1
                assert second[0] != first[-1]  # no row of text goes on in the next micro-batch
    assert of_text == 6 * 8 // 4


def test_an_end_of_turn_is_learnt_wherever_a_row_ends(
    tokenizer: PreTrainedTokenizerBase, rendered: list[TokenizedExample]
) -> None:
    for length in (64, 100, 128, 256):
        packed = PackedConversations(rendered, length, max(count_rows(one, length) for one in rendered))
        data = batches(packed, 1, packed.rows_per_group)
        ends = loss_ends = learnt = 0
        for step in range(len(packed)):
            for micro in range(packed.rows_per_group):
                labels = data.batch_at(step, micro)["labels"]
                loss_ends += int((labels == tokenizer.eos_token_id).sum())
                learnt += int((labels != IGNORE_INDEX).sum())
        for one in rendered:
            ends += int((one.ids[one.loss_mask] == tokenizer.eos_token_id).sum())
        assert loss_ends == ends
        assert learnt >= 0.99 * sum(int(one.loss_mask.sum()) for one in rendered)
