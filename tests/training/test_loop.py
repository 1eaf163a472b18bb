"""The loop: equal results however a batch is cut, golden losses, resume, early stopping, non-finite losses."""

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from comparing import relative
from small_trainings import Said
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.data.batches import corpus_batches
from mm_rec.data.corpus import Corpus
from mm_rec.data.row_sources import PackedSequences
from mm_rec.errors import CheckpointError, TrainingStopped
from mm_rec.models.attention import NAME
from mm_rec.models.loading import load_model
from mm_rec.models.mmrec import memory as memory_layer
from mm_rec.models.mmrec.recurrence import step_recurrence
from mm_rec.models.presets import build, preset
from mm_rec.runs.metrics_log import read_metrics
from mm_rec.training.checkpoint import Checkpoints
from mm_rec.training.interrupt import StopRequest
from mm_rec.training.loop_state import LoopState
from mm_rec.training.objectives import SumCount, next_token
from mm_rec.training.optim import OptimizerSet
from mm_rec.training.schedule import SHAPES, learning_rate
from mm_rec.training.section import ResolvedTrainSection
from mm_rec.training.trainer import Trainer

GOLDEN = Path(__file__).parent.parent / "golden"
BASE = {
    "steps": 6,
    "seq_len": 16,
    "batch_size": 4,
    "learning_rate": 0.003,
    "precision": "float32",
    "seed": 5,
}


def tiny(name: str = "tiny", vocabulary: int = 24) -> PreTrainedModel:
    changes = {"num_hidden_layers": 2, "hidden_size": 64}
    if name.startswith("llama"):
        changes |= {"num_attention_heads": 1, "intermediate_size": 96}
    if name.startswith("hybrid"):
        changes["full_attention_interval"] = 2
    return build(preset(name).config(vocabulary, **changes), seed=1)


def training(
    corpus: Corpus,
    run: Path,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel | None = None,
    **changes: object,
) -> Trainer:
    extra = {key: changes.pop(key) for key in ("validate", "objective", "reporter") if key in changes}
    config = ResolvedTrainSection(**{**BASE, **changes})
    batches = corpus_batches(corpus, config.seq_len, config.batch_size, config.accumulation, config.seed)
    objective = extra.pop("objective", next_token(torch.float32))
    reporter = extra.pop("reporter", Said())
    model = model or tiny()
    optimizer = OptimizerSet(model, config)
    return Trainer(model, tokenizer, optimizer, batches, objective, config, run, reporter, **extra)


def fit(run: Trainer) -> str:
    with StopRequest(lambda text: None) as stop:
        return run.fit(stop)


@pytest.mark.parametrize("name", ["tiny", "hybrid_tiny", "llama_tiny"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_accumulation_equals_one_batch(
    name: str, optimizer: str, corpus: Corpus, word_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """4 × 2 rows, 2 × 4 and 1 × 8, in float64: the same gradients and the same weights after a step."""
    results = []
    for rows, times in ((8, 1), (4, 2), (1, 8)):
        model = tiny(name).double()
        run = training(
            corpus, tmp_path / f"{rows}", word_tokenizer, model, optimizer=optimizer, batch_size=rows,
            accumulation=times, objective=float64_objective(),
        )  # fmt: skip
        kept: dict[str, torch.Tensor] = {}
        step = run.optimizer.step

        def keep_and_step(step=step, model=model, kept=kept) -> None:
            kept.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
            step()

        run.optimizer.step = keep_and_step  # type: ignore[method-assign]
        loss = run._step()["loss"]
        results.append((loss, kept, {n: p.detach().clone() for n, p in model.named_parameters()}))
    loss, gradients, weights = results[0]
    for other_loss, other_gradients, other_weights in results[1:]:
        assert other_loss == pytest.approx(loss, rel=1e-12)
        for n in gradients:
            assert relative(other_gradients[n], gradients[n]) < 1e-9, n
            assert relative(other_weights[n], weights[n]) < 1e-9, n


def float64_objective():
    from mm_rec.models.cross_entropy import chunked_cross_entropy
    from mm_rec.models.forward import hidden_states, lm_head_of

    def objective(model, batch):
        total = chunked_cross_entropy(hidden_states(model, batch), lm_head_of(model), batch["labels"])
        return {"loss": SumCount(total, int((batch["labels"][:, 1:] != -100).sum()))}

    return objective


@pytest.mark.parametrize("name", ["tiny", "hybrid_tiny", "llama_tiny"])
def test_packed_rows_train_as_documents_alone(name: str, corpus: Corpus) -> None:
    """The gradient of a packed batch is that of its documents, each run by itself."""
    batch = PackedSequences(corpus, 40).batch(torch.arange(3).numpy())
    objective, gradients = float64_objective(), []
    alone = []
    for row in range(3):
        for document in batch["document_ids"][row].unique():
            place = batch["document_ids"][row] == document
            alone.append({key: batch[key][row : row + 1, place] for key in ("input_ids", "labels")})
    for batches in ([batch], alone):
        model = tiny(name).double()
        total = sum(objective(model, one)["loss"].total for one in batches)
        total.backward()
        gradients.append((total.detach(), {n: p.grad for n, p in model.named_parameters()}))
    assert relative(gradients[0][0], gradients[1][0]) < 1e-9
    for n, gradient in gradients[1][1].items():
        assert relative(gradients[0][1][n], gradient) < 1e-9, n


class Losses(Said):
    """Keeps the loss of each step as it is: the log rounds."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        self.losses.append(values["loss"])


def losses_of(run: Trainer) -> list[float]:
    """Train to the end; returns the loss of every step."""
    run.reporter = reporter = Losses()
    fit(run)
    return reporter.losses


def in_float64(name: str) -> PreTrainedModel:
    """A tiny model whose random weights are drawn in float64: in float32 processors draw them differently."""
    config, attention_form = tiny(name).config, {"attn_implementation": NAME} if name == "llama_tiny" else {}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64, **attention_form)
    if name == "llama_tiny":  # transformers turns in float32, whatever the model's dtype
        model.model.rotary_emb.forward = lambda x, position_ids: tuple(
            turn.repeat(1, 1, 2).to(x.dtype) for turn in rotary(position_ids, config.head_dim)
        )
    return model


def rotary(positions: torch.Tensor, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (B, T, D/2) of the rotary angles (Su et al. 2021), in float64."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    angles = torch.remainder(positions[..., None].double() * 10_000.0**-exponents, 2 * math.pi)
    return angles.cos(), angles.sin()


def float32_drift(model: PreTrainedModel, steps: int, learning_rate: float) -> float:
    """How far (nats) rounding to float32 may carry the losses of an AdamW training from those without rounding.

    A sum of H products is off by at most H units of rounding u, so the gradient g of a model of width H by about
    e with ‖e‖ = H·u·‖g‖. AdamW moves weight i by about lr·sign(gᵢ), and e changes that where |gᵢ| is no larger than
    |eᵢ|: the loss then changes by lr·|eᵢ| at most, and by lr·‖e‖₁ ≤ lr·√n·‖e‖ for all n weights of a step. Gradients
    are clipped to ‖g‖ ≤ 1, and what each step adds stays.
    """
    weights = sum(parameter.numel() for parameter in model.parameters())
    unit = torch.finfo(torch.float32).eps / 2
    return float(steps * learning_rate * math.sqrt(weights) * model.config.hidden_size * unit)


SHORT = {"steps": 20, "warmup_steps": 3}


@pytest.mark.parametrize("name", ["tiny", "hybrid_tiny", "llama_tiny"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_golden_losses(
    name: str,
    optimizer: str,
    corpus: Corpus,
    word_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Per-step losses of a short run; a refactor leaves them alone. MMREC_WRITE_GOLDEN=1 writes them anew.

    They are those of the reference form (the recurrence step by step) in float64, which no processor changes by more
    than its last digits.
    """
    monkeypatch.setattr(memory_layer, "chunked_recurrence", lambda *given: step_recurrence(*given[:-1]))
    run = training(
        corpus, tmp_path, word_tokenizer, in_float64(name), optimizer=optimizer,
        objective=float64_objective(), **SHORT,
    )  # fmt: skip
    losses = losses_of(run)
    path = GOLDEN / f"{name}_{optimizer}.json"
    if os.environ.get("MMREC_WRITE_GOLDEN"):
        path.write_text(json.dumps(losses) + "\n")
    assert losses == pytest.approx(json.loads(path.read_text()), rel=1e-9)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", ["tiny", "llama_tiny"])
def test_the_form_that_trains_has_the_losses_of_float64(
    name: str, corpus: Corpus, word_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    losses = []
    for run in (
        training(
            corpus, tmp_path / "64", word_tokenizer, in_float64(name), optimizer="adamw",
            objective=float64_objective(), **SHORT,
        ),
        training(
            corpus, tmp_path / "32", word_tokenizer, in_float64(name).float(), optimizer="adamw", **SHORT
        ),
    ):  # fmt: skip
        losses.append(losses_of(run))
    drift = float32_drift(run.model, SHORT["steps"], BASE["learning_rate"])
    assert losses[1] == pytest.approx(losses[0], abs=drift)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resume_is_exact_across_an_epoch_border(
    optimizer: str, corpus: Corpus, word_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    settings = {"steps": 24, "optimizer": optimizer, "checkpoint_every": 6, "keep_last": 9, "warmup_steps": 2}
    whole = training(corpus, tmp_path / "whole", word_tokenizer, **settings)
    assert whole.batches.epoch(23) > 0
    fit(whole)
    half = Checkpoints(tmp_path / "whole" / "checkpoints", 9).folder / "step-00000012"
    from mm_rec.training.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(half)
    again = training(
        corpus, tmp_path / "again", word_tokenizer, load_model(checkpoint.model_folder), **settings
    )
    torch.rand(100)  # the random state must come from the checkpoint
    again.resume(checkpoint)
    fit(again)
    for (n, a), b in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b), n
    states = (whole.optimizer.state_tensors(), again.optimizer.state_tensors())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_other_batches_are_refused_on_resume(
    corpus: Corpus, word_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    fit(training(corpus, tmp_path, word_tokenizer))
    checkpoint = Checkpoints(tmp_path / "checkpoints", 2).load_newest(print)
    assert checkpoint is not None
    other = training(corpus, tmp_path / "other", word_tokenizer, seq_len=20)
    with pytest.raises(CheckpointError, match="seq_len was 16 and is 20"):
        other.resume(checkpoint)


def test_a_damaged_newest_checkpoint_is_passed_over_saying_so(
    corpus: Corpus, word_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    fit(training(corpus, tmp_path, word_tokenizer, checkpoint_every=3))
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    newest = checkpoints.steps()[-1]
    weights = newest / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    (tmp_path / "checkpoints" / ".step-00000009.1-1.tmp").mkdir()
    said: list[str] = []
    found = checkpoints.load_newest(said.append)
    assert found is not None and found.step == 3
    assert "model.safetensors: missing or damaged" in said[0] and "Falling back" in said[0]
    assert not list((tmp_path / "checkpoints").glob(".*"))
    (checkpoints.steps()[0] / "files.json").unlink()
    with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged"):
        checkpoints.load_newest(said.append)


def test_a_validation_or_weights_that_are_not_finite_never_end_as_done(
    corpus: Corpus, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    for number, bad in enumerate((math.nan, math.inf)):
        run = tmp_path / str(number)
        figures = iter([{"loss": 3.0}, {"loss": bad}])
        one = training(
            corpus, run, tokenizer, steps=4, validate_every=2, validate=lambda model, left=figures: next(left)
        )
        with (
            pytest.raises(TrainingStopped, match=rf"step 4: the validation loss is {bad}"),
            StopRequest(print) as stop,
        ):
            one.fit(stop)
        assert (run / "checkpoints" / "latest").read_text().strip() == "step-00000001"
        assert read_metrics(run / "metrics.jsonl")[-1]["event"] == "non-finite"
    one = training(corpus, tmp_path / "weights", tokenizer, steps=1, optimizer="adamw")
    one.optimizer.step = lambda: next(one.model.parameters()).data.fill_(math.inf)  # type: ignore[method-assign]
    with pytest.raises(TrainingStopped, match="step 1: weights are infinite"), StopRequest(print) as stop:
        one.fit(stop)
    assert not (tmp_path / "weights" / "checkpoints" / "latest").exists()


def test_a_non_finite_loss_stops_before_the_step(
    corpus: Corpus, word_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    calls = 0

    def objective(model, batch):
        nonlocal calls
        calls += 1
        loss = next_token(torch.float32)(model, batch)["loss"]
        return {"loss": SumCount(loss.total * (math.nan if calls == 3 else 1.0), loss.count)}

    run = training(corpus, tmp_path, word_tokenizer, objective=objective)
    with pytest.raises(TrainingStopped, match=r"step 3: .*nan.*--learning-rate 0\.0015"):
        fit(run)
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    assert run.state.step == 2


def test_best_model_early_stopping_and_over_fitting(
    corpus: Corpus, word_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    losses = iter([3.0, 2.0, 2.1, 2.2, 2.3])
    reporter = Said()
    run = training(
        corpus, tmp_path, word_tokenizer, steps=50, validate_every=2, patience=2, reporter=reporter,
        learning_rate=0.001, validate=lambda model: {"loss": next(losses)},
    )  # fmt: skip
    assert fit(run) == "early"
    assert (run.state.step, run.state.best_step) == (8, 4)
    assert any("stopping early" in text for text in reporter.said)
    best = load_model(tmp_path / "best")
    assert not torch.equal(best.model.embed_tokens.weight, run.model.model.embed_tokens.weight)
    assert Checkpoints(tmp_path / "checkpoints", 2).steps()[-1].name == "step-00000008"
    assert LoopState(history=[(3.0, 2.0), (2.0, 2.1), (1.0, 2.2)]).over_fitting
    assert not LoopState(history=[(3.0, 2.0), (2.0, 2.1), (2.5, 2.2)]).over_fitting
    assert not LoopState(history=[(3.0, 2.0), (2.0, 1.9), (1.0, 2.2)]).over_fitting


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_leaves(
    number: signal.Signals, corpus: Corpus, word_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    run = training(corpus, tmp_path, word_tokenizer, steps=100)
    run.on_event = lambda moment, step: (
        os.kill(os.getpid(), number) if (moment, step) == ("micro", 4) else None
    )
    assert fit(run) == "stopped"
    assert run.state.step == 5
    checkpoint = Checkpoints(tmp_path / "checkpoints", 2).load_newest(print)
    assert checkpoint is not None and checkpoint.step == 5


def test_only_the_last_checkpoints_are_kept_and_the_first_comes_at_once(
    corpus: Corpus, word_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    run = training(corpus, tmp_path, word_tokenizer, steps=9, checkpoint_every=2, keep_last=2)
    saved: list[int] = []
    run.on_event = lambda moment, step: saved.append(step) if moment == "checkpoint" else None
    fit(run)
    assert saved == [1, 2, 4, 6, 8, 9]
    assert [folder.name for folder in run.checkpoints.steps()] == ["step-00000008", "step-00000009"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000009\n"


@pytest.mark.usefixtures("compiler")
def test_gradient_checkpointing_and_compilation_keep_the_losses(
    corpus: Corpus, word_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    losses = []
    for number, changes in enumerate(({}, {"gradient_checkpointing": True}, {"compile": True})):
        run = training(corpus, tmp_path / str(number), word_tokenizer, steps=3, optimizer="adamw", **changes)
        losses.append(losses_of(run))
    allowed = 2 * float32_drift(run.model, 3, BASE["learning_rate"])  # each form is off by one such drift
    assert losses[1] == pytest.approx(losses[0], abs=allowed)
    assert losses[2] == pytest.approx(losses[0], abs=allowed)


def test_schedules() -> None:
    def rates(schedule: str, **changes: object) -> list[float]:
        config = ResolvedTrainSection(
            **{**BASE, "steps": 11, "warmup_steps": 2, "learning_rate": 1.0, "schedule": schedule, **changes}
        )
        return [learning_rate(step, config) for step in range(11)]

    for schedule in SHAPES:
        assert rates(schedule)[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates("cosine")[-1] == pytest.approx(0.1)
    assert rates("linear")[6] == pytest.approx(0.55)
    assert rates("constant")[-1] == 1.0
    wsd = rates("wsd", decay_fraction=0.5, min_lr_ratio=1e-13)
    assert (
        wsd[2:7] == pytest.approx([1.0] * 5)
        and wsd[8] == pytest.approx(0.5)
        and wsd[-1] == pytest.approx(0.0)
    )


def test_no_step_has_the_rate_0() -> None:
    """A rate that falls to 0 would get there one step after the last."""
    for schedule in SHAPES:
        for warmup in range(4):
            for steps in range(max(1, warmup), 8):
                config = ResolvedTrainSection(
                    **{
                        **BASE,
                        "steps": steps,
                        "warmup_steps": warmup,
                        "schedule": schedule,
                        "min_lr_ratio": 0.0,
                    }
                )
                rates = [learning_rate(step, config) for step in range(steps)]
                assert min(rates) > 0 and rates[warmup:] == sorted(rates[warmup:], reverse=True)
                if schedule == "linear":
                    assert rates[-1] == pytest.approx(0.003 / max(1, steps - warmup))


def test_the_share_of_the_peak_is_never_over_all_of_it(
    corpus: Corpus, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    run = training(corpus, tmp_path, tokenizer, log_every=1)
    run.flops_per_token, run.peak_flops = 10**9, 1.0  # measured while another process was busy
    fit(run)
    shares = [
        record["peak_share"] for record in read_metrics(tmp_path / "metrics.jsonl") if "peak_share" in record
    ]
    assert len(shares) == 6 and shares[0] == 1.0 and all(0 < share <= 1 for share in shares)


def test_a_metrics_file_cut_short_is_read_up_to_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "train", "st')
    assert read_metrics(path) == [{"kind": "train", "step": 1}]


def test_a_schedule_of_another_package_is_one_function_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "square", lambda progress, section: (1 - progress) ** 2)
    config = ResolvedTrainSection(
        **{**BASE, "steps": 11, "learning_rate": 1.0, "min_lr_ratio": 0.2, "schedule": "square"}
    )
    assert learning_rate(5, config) == pytest.approx(0.2 + 0.8 * 0.25)
    with pytest.raises(ValueError, match="there are cosine, linear, wsd, constant"):
        ResolvedTrainSection(**{**BASE, "schedule": "sine"})
