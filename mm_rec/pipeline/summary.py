"""What a run leaves beside its model: log, parameters, pictures and a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from mm_rec.config import load_yaml
from mm_rec.models.adapters import adapters_of
from mm_rec.models.presets import ModelSize
from mm_rec.pipeline.derive import state_text
from mm_rec.runs.directory import RECIPE_FILE
from mm_rec.runs.files import write_json, write_text
from mm_rec.runs.metrics_log import read_metrics
from mm_rec.runs.plots import plot_training
from mm_rec.training.trainer import LoopState

_WHOLE = (
    "library_name: transformers\n",
    """    mmrec chat {run}
    mmrec generate {run} --prompt "…"
    mmrec evaluate {run} --text FILE

`final/` (the last weights) and `best/` (the lowest validation loss) are complete Hugging Face folders.""",
)
_ADAPTER = (
    "library_name: peft\nbase_model: {base}\n",
    """    mmrec generate {base} --adapter {run} --prompt "…"
    mmrec chat {base} --adapter {run}
    mmrec merge {base} --adapter {run} --out {run}-merged

This folder is the adapter of the last step (`adapter_config.json`, `adapter_model.safetensors`; PEFT reads it), `best/`
that of the lowest validation loss, `checkpoint-…-loss-…` those at which the training loss had fallen. `base.json` says
what model it belongs to, `training_prompt.json` how its examples are written: ask in the same way.""",
)
_STOPPED = "This run was stopped before its end: `--resume` goes on, and then this card says how to use what it made."
_FAMILIES = {"mmrec": "An MM-Rec", "llama": "A LLaMA-like"}


def write_summary(
    run: Path,
    base: str,
    model: PreTrainedModel,
    size: ModelSize,
    card_lines: list[str],
    state: LoopState,
    ended: str,
    rows: int,
    epochs: float | None = None,
    forgetting: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Write `training_log.json`, `training_parameters.json`, `training_graph.json/.png` and `README.md`.

    `rows` of a step; `epochs` read, where the data has an end; `forgetting`: bits a byte of the base's held-out text,
    `before` and `after`. The log's names are those of transformers' Trainer.
    """
    records = read_metrics(run / "metrics.jsonl")
    train = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "validation"]
    best = min(validation, key=lambda record: record["loss"], default=None)
    losses = [record["loss"] for record in train]
    log = {
        "base_model_name": base,
        "base_model_class": type(model).__name__,
        "parameters": size.parameters,
        "ended": ended,
        "loss": losses[-1] if losses else None,
        "first_loss": losses[0] if losses else None,
        "train_loss": round(sum(losses) / len(losses), 6) if losses else None,
        "epoch": None if epochs is None else round(epochs, 4),
        "total_steps": state.step,
        "tokens": state.tokens,
        "best_validation": best,
        "base_text_bits_per_byte": forgetting,
        "train_runtime": round(state.seconds, 3),  # seconds
        "train_samples_per_second": round(state.step * rows / state.seconds, 3) if state.seconds else None,
        "train_tokens_per_second": round(state.tokens / state.seconds, 1) if state.seconds else None,
        "train_steps_per_second": round(state.step / state.seconds, 4) if state.seconds else None,
    }
    write_json(run / "training_log.json", log)
    write_json(run / "training_parameters.json", load_yaml(run / RECIPE_FILE))
    plot_training(run, f"{run.name}: {model.config.model_type}, {size.parameters / 1e6:.2f} M parameters")
    write_text(run / "README.md", _model_card(run, model, size, card_lines, log))
    return log


def _model_card(
    run: Path,
    model: PreTrainedModel,
    size: ModelSize,
    card_lines: list[str],
    log: dict[str, Any],
) -> str:
    """The card in Markdown; every number comes from the run's records."""
    best = log["best_validation"]
    text = "\n".join(f"- {line}" for line in card_lines)
    measured = "Validation was not measured."
    if best:
        bits = f"{best['bits_per_byte']:.4f} bits a byte, " if "bits_per_byte" in best else ""
        measured = (
            f"Best validation loss {best['loss']:.4f} nats a token, {bits}"
            f"token accuracy {best['token_accuracy']:.1%}, at step {best['step']}."
        )
    forgetting = log["base_text_bits_per_byte"]
    if forgetting and forgetting["after"] is not None:
        measured += (
            f"\n- held-out text of the base: {forgetting['before']:.4f} bits a byte before, "
            f"{forgetting['after']:.4f} after"
        )
    adapters = adapters_of(model)
    head, use = _WHOLE if adapters is None else _ADAPTER
    kind = _FAMILIES.get(model.config.model_type, "A")
    what = (
        f"{kind} language model of {size.parameters:,} parameters, trained with MM-Rec.\n"
        f"It remembers by {state_text(model.config, size)}."
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
- {log["total_steps"]:,} steps, {log["tokens"]:,} tokens read, {log["train_runtime"]:,.0f} seconds ({log["ended"]})
- training loss {log["first_loss"]} → {log["loss"]}
- {measured}

![loss](training_graph.png)

All settings are in `recipe.yaml`, what it was made from in `lineage.json`, each measurement in `metrics.jsonl`.

## Use

{use.format(run=run, base=log["base_model_name"]) if log["ended"] != "stopped" else _STOPPED}

## Limits

A small model repeats patterns of its training text, false statements and prejudices included. It was not
aligned, and is no source of medical, legal or financial advice. The licence of the training text decides how
the weights may be used.
"""
