"""The summary of a run: log, parameters, pictures and a model card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from mm_rec.config import load_yaml
from mm_rec.models.adapters import adapters_of
from mm_rec.models.presets import ModelSize
from mm_rec.models.traits import traits_of
from mm_rec.runs.directory import RECIPE_FILE
from mm_rec.runs.files import write_json, write_text
from mm_rec.runs.metrics import MetricSpec, Outcome, best_record, outcome_sentence
from mm_rec.runs.metrics_log import METRICS_FILE, read_metrics
from mm_rec.runs.plots import plot_training
from mm_rec.training.loop_state import LoopState

_WHOLE = (
    "library_name: transformers\n",
    """    mmrec chat {run}
    mmrec generate {run} --prompt "…"
    mmrec evaluate text {run} FILE

`final/` (the last weights) and `best/` (the best {best} of a validation) are complete Hugging Face folders.""",
)
_ADAPTER = (
    "library_name: peft\nbase_model: {base}\n",
    """    mmrec generate {base} --adapter {run} --prompt "…"
    mmrec chat {base} --adapter {run}
    mmrec merge {base} --adapter {run} --out {run}-merged

This folder is the adapter of the last step (`adapter_config.json`, `adapter_model.safetensors`; PEFT reads it), `best/`
that of the best {best} of a validation, `checkpoint-…-loss-…` those at which the training loss had fallen. `base.json`
says what model it belongs to, and `training_prompt.json`, where there is one, how its examples are written: ask in the
same way.""",
)
_STOPPED = "This run was stopped before its end: `--resume` goes on, and then this card says how to use what it made."


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of a training: everything that log, pictures and model card are made of.

    `epochs` read, where the data has an end; `forgetting`: bits a byte of the base's held-out text, `before` and
    `after`; `best` is the metric by which the best model was chosen.
    """

    run: Path
    base: str
    model: PreTrainedModel
    size: ModelSize
    card_lines: list[str]
    state: LoopState
    outcome: Outcome
    rows_per_step: int
    best: MetricSpec
    metrics: list[MetricSpec]
    epochs: float | None = None
    forgetting: dict[str, float] | None = None


def write_summary(result: RunResult) -> dict[str, Any]:
    """Write `training_log.json`, `training_parameters.json`, `training_graph.json/.png` and `README.md`.

    The log's names are those of transformers' Trainer.
    """
    run, state = result.run, result.state
    records = read_metrics(run / METRICS_FILE)
    train = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "validation"]
    losses = [record["loss"] for record in train]
    log = {
        "base_model_name": result.base,
        "base_model_class": type(result.model).__name__,
        "parameters": result.size.parameters,
        "ended": result.outcome.value,
        "loss": losses[-1] if losses else None,
        "first_loss": losses[0] if losses else None,
        "train_loss": round(sum(losses) / len(losses), 6) if losses else None,
        "epoch": None if result.epochs is None else round(result.epochs, 4),
        "total_steps": state.step,
        "tokens": state.tokens,
        "best_validation": best_record(validation, result.best),
        "base_text_bits_per_byte": result.forgetting,
        "train_runtime": round(state.seconds, 3),  # seconds
        "train_samples_per_second": _per_second(state.step * result.rows_per_step, state.seconds, 3),
        "train_tokens_per_second": _per_second(state.tokens, state.seconds, 1),
        "train_steps_per_second": _per_second(state.step, state.seconds, 4),
    }
    write_json(run / "training_log.json", log)
    write_json(run / "training_parameters.json", load_yaml(run / RECIPE_FILE))
    parameters = result.size.parameters
    plot_training(run, f"{run.name}: {result.model.config.model_type}, {parameters / 1e6:.2f} M parameters")
    write_text(run / "README.md", _model_card(result, log))
    return log


def _per_second(amount: int, seconds: float, digits: int) -> float | None:
    return round(amount / seconds, digits) if seconds else None


def _measured(best: dict[str, Any] | None, metrics: list[MetricSpec]) -> str:
    """The best validation in a sentence, each metric with its unit."""
    if best is None:
        return "Validation was not measured."
    values = [f"{spec.title} {spec.shown(best[spec.name])}" for spec in metrics if spec.name in best]
    return f"Best validation: {', '.join(values)}, at step {best['step']}."


def _model_card(result: RunResult, log: dict[str, Any]) -> str:
    """The card in Markdown; every number comes from the run's records."""
    run, model, size = result.run, result.model, result.size
    text = "\n".join(f"- {line}" for line in result.card_lines)
    measured = _measured(log["best_validation"], result.metrics)
    forgetting = result.forgetting
    if forgetting and forgetting["after"] is not None:
        measured += (
            f"\n- held-out text of the base: {forgetting['before']:.4f} bits a byte before, "
            f"{forgetting['after']:.4f} after"
        )
    seconds, ended = f"{log['train_runtime']:,.0f}", outcome_sentence(result.outcome)
    adapters = adapters_of(model)
    head, use = _WHOLE if adapters is None else _ADAPTER
    use = use.format(run=run, base=log["base_model_name"], best=result.best.title)
    use = _STOPPED if result.outcome == Outcome.STOPPED else use
    traits = traits_of(model.config)
    what = (
        f"{traits.label} language model of {size.parameters:,} parameters, trained with MM-Rec.\n"
        f"It remembers by {traits.state_text(size)}."
        if adapters is None
        else f"A LoRA adapter for `{log['base_model_name']}` ({log['base_model_class']}, {size.parameters:,} "
        f"parameters), trained with MM-Rec.\n{adapters.description}"
    )
    return f"""---
{head.format(base=log["base_model_name"])}pipeline_tag: text-generation
---
# {run.name}

{what}

## Training

{text}
- {log["total_steps"]:,} steps, {log["tokens"]:,} tokens read, {seconds} seconds ({ended})
- training loss {log["first_loss"]} → {log["loss"]}
- {measured}

![loss](training_graph.png)

All settings are in `recipe.yaml`, what it was made from in `lineage.json`, each measurement in `metrics.jsonl`.

## Use

{use}

## Limits

A small model repeats patterns of its training text, false statements and prejudices included. It was not
aligned, and is no source of medical, legal or financial advice. The licence of the training text decides how
the weights may be used.
"""
