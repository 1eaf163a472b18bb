"""Cross-entropy over a large vocabulary, in chunks: all logits never exist at once.

Shapes: N tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100
CHUNK_TOKENS = 512  # of one product: what a CPU's caches hold
_GPU_LOGITS = 2**28  # of one product on a GPU, 1 GiB of them: enough to keep it busy


@dataclass(frozen=True)
class LMHead:
    """The head, hidden states to logits: weight (V, D); a factor (Granite); a cap c, c · tanh(logit / c) (Gemma 2)."""

    weight: Tensor
    factor: float = 1.0
    cap: float | None = None

    def logits(self, states: Tensor) -> Tensor:
        """The logits (…, V) of states (…, D), in float32 at least."""
        product = states @ self.weight.T
        logits = product.to(torch.promote_types(torch.float32, product.dtype))
        if self.factor != 1.0:
            logits = logits * self.factor
        return logits if self.cap is None else (logits / self.cap).tanh() * self.cap

    def grad(self, logits: Tensor, grad: Tensor) -> Tensor:
        """The gradient (N, V) of the products, of that of the logits; it may be changed in place."""
        if self.cap is not None:
            grad.mul_(1 - (logits / self.cap).square())
        return grad if self.factor == 1.0 else grad.mul_(self.factor)

    def to(self, dtype: torch.dtype) -> LMHead:
        """The same with its weight in a dtype."""
        return replace(self, weight=self.weight.to(dtype))


def chunked_cross_entropy(
    hidden: Tensor, head: LMHead, labels: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """Sum of the cross-entropy (nats) of the next-token predictions.

    hidden: (B, T, D); labels: (B, T) int64, unshifted as in transformers, −100 ignored.
    Matrix products run in `dtype` (default: that of hidden), the softmax in float32 at least. Returns a scalar.
    """
    return target_cross_entropy(hidden, head, next_tokens(labels), dtype)


def target_cross_entropy(
    hidden: Tensor, head: LMHead, targets: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """The same for targets (B, T): what stands at each place is what the state there predicts, −100 for nothing."""
    if hidden.device.type == "cpu":
        states, chosen = _predicting(hidden, targets)
    else:  # how many are predicted would have to be waited for; what is ignored gets no gradient
        states, chosen = hidden.flatten(0, 1), targets.flatten()
    total: Tensor = _ChunkedCrossEntropy.apply(states, head.weight, head, chosen, dtype or hidden.dtype)
    return total


def next_tokens(labels: Tensor) -> Tensor:
    """The targets (B, T) of next-token prediction: of each place the label of the next one, −100 at the last."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def shift_labels(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden states (N, D) that have a label to predict, and those labels (N,)."""
    return _predicting(hidden, next_tokens(labels))


def _predicting(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    kept = (targets != IGNORE_INDEX).flatten().nonzero()[:, 0]
    return hidden.flatten(0, 1).index_select(0, kept), targets.flatten().index_select(0, kept)


def token_logprobs(hidden: Tensor, head: LMHead, labels: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Log-probability (nats, float32 at least) of each label that is predicted, (N,) in reading order, with gradient.

    Arguments as above. What preferences and policies are made of: unlike a mean, each may get a weight of its own. The
    logits are computed again for the gradient, a chunk at a time.
    """
    states, targets = shift_labels(hidden, labels)
    found: Tensor = _TokenLogprobs.apply(states, head.weight, head, targets, dtype or hidden.dtype)
    return found


@torch.no_grad()
def token_losses(
    hidden: Tensor, head: LMHead, labels: Tensor, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Loss (nats, float32) and correctness (bool) of each predicted token, in reading order; arguments as above."""
    states, targets = shift_labels(hidden, labels)
    losses, correct = [], []
    for _, logits, chosen in _logit_chunks(states, head, targets, dtype or hidden.dtype):
        losses.append(logits.logsumexp(-1) - logits.gather(1, chosen[:, None])[:, 0])
        correct.append(logits.argmax(-1) == chosen)
    return torch.cat(losses), torch.cat(correct)


def _logit_chunks(
    states: Tensor, head: LMHead, targets: Tensor, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(states in dtype, logits in float32 at least, targets) of each chunk of tokens; one if there are none."""
    head = head.to(dtype)
    size = CHUNK_TOKENS
    if states.device.type != "cpu":
        size = max(size, _GPU_LOGITS // len(head.weight))
    for start in range(0, max(1, states.shape[0]), size):
        part = states[start : start + size].to(dtype)
        yield part, head.logits(part), targets[start : start + size]


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradient of a softmax is known as soon as the logits are, so it is taken at once and the logits dropped."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, head: LMHead, targets: Tensor, dtype: torch.dtype
    ) -> Tensor:
        wide = torch.promote_types(torch.float32, dtype)
        total = states.new_zeros((), dtype=wide)
        gradient = states.requires_grad or weight.requires_grad
        states_grad = torch.empty_like(states) if gradient else None
        # A frozen head, beside an adapter, needs none of this product.
        weight_grad = torch.zeros_like(weight, dtype=wide) if weight.requires_grad else None
        narrow, done = weight.to(dtype), 0
        for part, logits, chosen in _logit_chunks(states, head, targets, dtype):
            kept = (chosen != IGNORE_INDEX)[:, None]
            correct = chosen[:, None].clamp(min=0)
            log_probs = logits.log_softmax(-1)  # one pass, where logsumexp and a difference are five
            total -= (log_probs.gather(1, correct) * kept).sum()
            if states_grad is None:
                continue
            grad = log_probs.exp_()
            grad.scatter_add_(1, correct, grad.new_full(correct.shape, -1.0))
            grad = head.grad(logits, grad).to(dtype)
            # What is ignored is taken out of the narrow factors, not of the gradient of all logits.
            states_grad[done : done + len(part)] = (grad @ narrow) * kept
            if weight_grad is not None:
                weight_grad += grad.T @ (part * kept)
            done += len(part)
        ctx.save_for_backward(states_grad, weight_grad)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states_grad, weight_grad = ctx.saved_tensors
        grad_states = states_grad * gradient.to(states_grad.dtype)
        if weight_grad is None:
            return grad_states, None, None, None, None
        return (
            grad_states,
            (weight_grad * gradient.to(weight_grad.dtype)).to(ctx.weight_dtype),
            None,
            None,
            None,
        )


class _TokenLogprobs(torch.autograd.Function):
    """Nothing but hidden states is kept between forward and backward: each chunk's softmax is made twice."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, head: LMHead, targets: Tensor, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(states, weight, targets)
        ctx.head, ctx.dtype = head, dtype
        chunks = _logit_chunks(states, head, targets, dtype)
        return torch.cat([logits.log_softmax(-1).gather(1, one[:, None])[:, 0] for _, logits, one in chunks])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, targets = ctx.saved_tensors
        head, narrow, done = replace(ctx.head, weight=weight), weight.to(ctx.dtype), 0
        states_grad = torch.empty_like(states)
        weight_grad = torch.zeros_like(weight, dtype=gradient.dtype) if ctx.needs_input_grad[1] else None
        for part, logits, chosen in _logit_chunks(states, head, targets, ctx.dtype):
            # d log p(y) = one-hot(y) − softmax, times what comes from above.
            grad = logits.softmax(-1).neg_()
            grad.scatter_add_(1, chosen[:, None], grad.new_ones(len(part), 1))
            grad.mul_(gradient[done : done + len(part), None])
            grad = head.grad(logits, grad).to(ctx.dtype)
            states_grad[done : done + len(part)] = grad @ narrow
            if weight_grad is not None:
                weight_grad += grad.T @ part
            done += len(part)
        return states_grad, None if weight_grad is None else weight_grad.to(weight.dtype), None, None, None
