"""Likelihoods of continuations in packed batches against plain forward passes, one at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mm_rec.errors import DataError
from mm_rec.evaluation.loglikelihood import (
    Loglikelihood,
    LoglikelihoodRequest,
    encode_request,
    loglikelihoods,
)
from mm_rec.models.forward import Batch


def random_requests(count: int, longest: int) -> list[LoglikelihoodRequest]:
    source = random.Random(7)
    requests = []
    for _ in range(count):
        ids = [source.randrange(400) for _ in range(source.randint(2, longest))]
        cut = source.randint(1, len(ids) - 1)
        requests.append((ids[:cut], ids[cut:]))
    return requests


@torch.no_grad()
def by_hand(model: PreTrainedModel, ids: Sequence[int], predicted: int) -> Loglikelihood:
    """Read a text alone, by the model's own forward, and look up the last tokens of it."""
    logits = model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0, -predicted:]
    chosen = torch.tensor(ids[-predicted:])
    nats = logits.log_softmax(-1).gather(1, chosen[:, None])
    return Loglikelihood(float(nats.double().sum()), predicted, bool((logits.argmax(-1) == chosen).all()))


def assert_same(given: list[Loglikelihood], expected: list[Loglikelihood], tolerance: float) -> None:
    assert [one.tokens for one in given] == [one.tokens for one in expected]
    assert [one.is_greedy for one in given] == [one.is_greedy for one in expected]
    a, b = (torch.tensor([one.logprob for one in found]).double() for found in (given, expected))
    assert float((a - b).norm() / b.norm()) < tolerance


@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
def test_packed_is_as_one_by_one(model: PreTrainedModel, batch_tokens: int) -> None:
    requests = random_requests(60, 90)
    expected = [by_hand(model, [*context, *ids], len(ids)) for context, ids in requests]
    given = list(loglikelihoods(model, iter(requests), batch_tokens=batch_tokens))
    assert_same(given, expected, 1e-9)


def test_packed_is_as_one_by_one_in_float32(model: PreTrainedModel) -> None:
    model.float()
    requests = random_requests(60, 90)
    expected = [by_hand(model, [*context, *ids], len(ids)) for context, ids in requests]
    assert_same(list(loglikelihoods(model, requests)), expected, 1e-5)


def test_the_likeliest_continuation_is_greedy(model: PreTrainedModel) -> None:
    context = [1, 7, 20]
    best, other = context[:], []
    for _ in range(4):
        logits = model(input_ids=torch.tensor([best]), use_cache=False).logits[0, -1]
        best.append(int(logits.argmax()))
        other.append(int(logits.argsort()[-2]))
    last = [*best[3:6], other[-1]]  # greedy up to the last token
    given = list(loglikelihoods(model, [(context, best[3:]), (context, other), (context, last)]))
    assert [one.is_greedy for one in given] == [True, False, False]


def test_the_last_tokens_of_a_long_text_are_read(
    build_model: Callable[..., PreTrainedModel], model: PreTrainedModel
) -> None:
    ids = list(range(3, 103))
    expected = [by_hand(model, ids[-41:], 10), by_hand(model, ids[-41:], 40)]
    given = list(loglikelihoods(model, [(ids[:90], ids[90:]), (ids[:60], ids[60:])], max_length=40))
    assert_same(given, expected, 1e-9)
    short = build_model("llama", context_limit=40)
    assert_same(list(loglikelihoods(short, [(ids[:90], ids[90:])])), [by_hand(short, ids[-41:], 10)], 1e-9)


def test_little_of_a_batch_is_padding(model: PreTrainedModel) -> None:
    places = 0

    def count(_: object, arguments: tuple[()], keywords: Batch) -> None:
        nonlocal places
        places += keywords["input_ids"].numel()

    requests = random_requests(400, 60)
    handle = model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    list(loglikelihoods(model, requests, batch_tokens=4096))
    handle.remove()
    read = sum(len(context) + len(ids) - 1 for context, ids in requests)
    assert read <= places < read * 1.02


def test_without_context_the_first_token_is_not_predicted(model: PreTrainedModel) -> None:
    ids = [5, 9, 30, 12]
    assert_same(list(loglikelihoods(model, [([], ids)])), [by_hand(model, ids, 3)], 1e-9)


def test_what_cannot_be_predicted(model: PreTrainedModel) -> None:
    for request in ([3, 4], []), ([], [3]):
        with pytest.raises(DataError, match="continuation 2 has nothing to predict"):
            list(loglikelihoods(model, [([3], [4]), request]))
    with pytest.raises(DataError, match="continuation 1 has 9 tokens and this model reads at most 8"):
        list(loglikelihoods(model, [([3], list(range(9)))], max_length=8))
    assert list(loglikelihoods(model, [])) == []


def test_the_model_is_left_in_its_mode(model: PreTrainedModel) -> None:
    model.train()
    assert next(loglikelihoods(model, [([3], [4])])).tokens == 1
    assert model.training


def test_texts_are_encoded_as_one_and_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    context, continuation = "Once there was", " a girl called Ayşe."
    head, tail = encode_request(tokenizer, context, continuation)
    assert [*head, *tail] == [
        tokenizer.bos_token_id,
        *tokenizer.encode(context + continuation, add_special_tokens=False),
    ]
    assert tokenizer.decode(tail) == continuation
    assert encode_request(tokenizer, "", "Once")[0] == [tokenizer.bos_token_id]


def test_a_tokenizer_without_bos(tokenizer: PreTrainedTokenizerBase) -> None:
    raw = tokenizer.backend_tokenizer.to_str()
    only_eos, bare = (
        PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(raw), pad_token="<|pad|>", add_bos_token=False, **more
        )
        for more in ({"eos_token": "<|endoftext|>"}, {})
    )
    assert encode_request(only_eos, "", "Once")[0] == [only_eos.eos_token_id]
    assert only_eos.eos_token_id not in encode_request(only_eos, "Once", " there")[0]
    assert encode_request(bare, "", "Once")[0] == []
