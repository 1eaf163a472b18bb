"""Attention per document and the families' common forward pass, against masks and against documents alone."""

from collections.abc import Callable

import pytest
import torch
from comparing import relative
from torch.nn.functional import scaled_dot_product_attention

from mm_rec.models.attention import _document_attention_loop, blockwise_attention, document_attention
from mm_rec.models.cross_entropy import LMHead, chunked_cross_entropy, token_logprobs, token_losses
from mm_rec.models.forward import document_positions, hidden_states, lm_head_of
from mm_rec.models.presets import build, preset

DOCUMENTS = torch.tensor([[0] * 5 + [1] * 1 + [2] * 14, [0] * 20])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("form", [document_attention, blockwise_attention, _document_attention_loop])
def test_attention_per_document_equals_a_block_diagonal_mask(
    form: Callable[..., torch.Tensor],
    compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if compiled:
        request.getfixturevalue("compiler")
    monkeypatch.setattr("mm_rec.models.attention._BLOCK", 7)
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 20, 8)
    q, k, v, weight = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4))
    mask = (DOCUMENTS[:, None, :, None] == DOCUMENTS[:, None, None, :]) & torch.ones(20, 20).tril().bool()

    def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return form(q, k, v, DOCUMENTS, 0.3)

    def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)

    results = []
    for function in (torch.compile(ours) if compiled else ours, masked):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        y = function(*leaves)
        (y * weight).sum().backward()
        results.append([y, *(leaf.grad for leaf in leaves)])
    for a, b in zip(*results, strict=True):
        assert relative(a, b) < 1e-9


@pytest.mark.parametrize("name", ["tiny", "llama_tiny"])
def test_packed_hidden_states_equal_documents_alone(name: str) -> None:
    model = build(preset(name).config(60, num_hidden_layers=2), seed=0).double().eval()
    ids = torch.randint(0, 60, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        packed = hidden_states(model, {"input_ids": ids, "document_ids": DOCUMENTS})
        for row, documents in enumerate(DOCUMENTS):
            for document in documents.unique():
                place = documents == document
                alone = hidden_states(model, {"input_ids": ids[row : row + 1, place]})
                assert relative(packed[row, place], alone[0]) < 1e-9


@pytest.mark.parametrize("name", ["tiny", "llama_tiny"])
@pytest.mark.parametrize("left", [0, 6])
def test_padding_equals_none(name: str, left: int) -> None:
    model = build(preset(name).config(60, num_hidden_layers=2), seed=0).double().eval()
    ids = torch.randint(0, 60, (1, 12), generator=torch.Generator().manual_seed(1))
    padded, mask = torch.zeros(1, 20, dtype=torch.int64), torch.zeros(1, 20, dtype=torch.int64)
    padded[:, left : left + 12], mask[:, left : left + 12] = ids, 1
    with torch.no_grad():
        got = hidden_states(model, {"input_ids": padded, "attention_mask": mask})[:, left : left + 12]
        assert relative(got, hidden_states(model, {"input_ids": ids})) < 1e-9


def test_llama_with_our_attention_equals_transformers_own() -> None:
    """The registered function against SDPA: full, cached in segments, and left-padded generation."""
    ours = build(preset("llama_tiny").config(60, num_hidden_layers=2), seed=0).double().eval()
    theirs = type(ours)(ours.config).double().eval()
    theirs.load_state_dict(ours.state_dict())
    theirs.set_attn_implementation("sdpa")
    ours.set_attn_implementation("mmrec")
    ids = torch.randint(1, 60, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids).logits
        assert relative(ours(ids).logits, expected) < 1e-9
        first = ours(ids[:, :7], use_cache=True)
        second = ours(ids[:, 7:], past_key_values=first.past_key_values, use_cache=True)
        assert relative(torch.cat([first.logits, second.logits], dim=1), expected) < 1e-9
        padded = torch.cat([torch.zeros(2, 4, dtype=torch.int64), ids], dim=1)
        mask = (padded != 0).long()
        settings = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(ours.generate(padded, **settings), theirs.generate(padded, **settings))


def test_a_model_that_could_mix_documents_is_refused() -> None:
    model = build(preset("llama_tiny").config(60, num_hidden_layers=1), seed=0)
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="keeps packed documents apart"):
        hidden_states(model, {"input_ids": torch.zeros(2, 20, dtype=torch.int64), "document_ids": DOCUMENTS})


def test_document_positions() -> None:
    expected = [[0, 1, 2, 3, 4, 0, *range(14)], list(range(20))]
    assert document_positions(DOCUMENTS).tolist() == expected


@pytest.mark.parametrize(("factor", "cap"), [(1.0, None), (0.25, None), (1.0, 3.0), (2.0, 1.5)])
def test_chunked_cross_entropy_equals_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, factor: float, cap: float | None
) -> None:
    monkeypatch.setattr("mm_rec.models.cross_entropy.CHUNK_TOKENS", 7)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 20, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(30, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 30, (2, 20), generator=generator)
    labels[0, 3:9] = -100
    loss = chunked_cross_entropy(hidden, LMHead(weight, factor, cap), labels)
    (0.5 * loss).backward()
    got = [loss.detach(), hidden.grad, weight.grad]
    hidden.grad = weight.grad = None
    logits = (hidden @ weight.T)[:, :-1].reshape(-1, 30) * factor
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    plain = torch.nn.functional.cross_entropy(logits, labels[:, 1:].reshape(-1), reduction="sum")
    (0.5 * plain).backward()
    for a, b in zip(got, [plain.detach(), hidden.grad, weight.grad], strict=True):
        assert a is not None and b is not None and relative(a, b) < 1e-9
    losses, right = token_losses(hidden, LMHead(weight, factor, cap), labels)
    assert relative(losses.sum(), plain.detach()) < 1e-9
    assert len(right) == int((labels[:, 1:] != -100).sum())


@pytest.mark.parametrize(("factor", "cap"), [(1.0, None), (0.25, None), (1.0, 3.0), (2.0, 1.5)])
@pytest.mark.parametrize("frozen", [False, True])
def test_log_probabilities_of_tokens_and_their_gradient_equal_the_plain_ones(
    monkeypatch: pytest.MonkeyPatch, factor: float, cap: float | None, frozen: bool
) -> None:
    """Each token has a weight of its own, as an advantage or a preference gives it."""
    monkeypatch.setattr("mm_rec.models.cross_entropy.CHUNK_TOKENS", 7)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 20, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(30, 8, generator=generator, dtype=torch.float64, requires_grad=not frozen)
    labels = torch.randint(0, 30, (2, 20), generator=generator)
    labels[1, 5:8] = -100
    weights = torch.randn(int((labels[:, 1:] != -100).sum()), generator=generator, dtype=torch.float64)
    found = token_logprobs(hidden, LMHead(weight, factor, cap), labels)
    (found * weights).sum().backward()
    got = [found.detach(), hidden.grad, weight.grad]
    hidden.grad = weight.grad = None
    logits = (hidden @ weight.T)[:, :-1].reshape(-1, 30) * factor
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    kept = labels[:, 1:].reshape(-1) != -100
    plain = logits.log_softmax(-1)[kept].gather(1, labels[:, 1:].reshape(-1)[kept][:, None])[:, 0]
    (plain * weights).sum().backward()
    for a, b in zip(got, [plain.detach(), hidden.grad, weight.grad], strict=True):
        assert (a is None and b is None and frozen) or relative(a, b) < 1e-9


def test_chunked_cross_entropy_of_a_frozen_head_gives_the_states_the_same_gradient() -> None:
    hidden, weight = torch.randn(2, 9, 8), torch.randn(30, 8)
    labels = torch.randint(30, (2, 9))
    gradients = []
    for trained in (True, False):
        states, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_(trained)
        (2 * chunked_cross_entropy(states, LMHead(head), labels)).backward()
        gradients.append(states.grad)
        assert (head.grad is not None) == trained
    assert torch.equal(*gradients)


def test_a_batch_without_a_label_costs_nothing() -> None:
    model = build(preset("tiny").config(60, num_hidden_layers=2), seed=0)
    ids = torch.zeros(1, 8, dtype=torch.int64)
    loss = chunked_cross_entropy(hidden_states(model, {"input_ids": ids}), lm_head_of(model), ids - 100)
    loss.backward()
    assert loss.item() == 0
