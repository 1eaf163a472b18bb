"""What a run leaves beside its model: log, parameters, pictures and a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from mm_rec.config import load_yaml
from mm_rec.models.presets import Size
from mm_rec.pipeline.derive import state_text
from mm_rec.runs.directory import RECIPE
from mm_rec.runs.files import write_json, write_text
from mm_rec.runs.log import read_metrics
from mm_rec.runs.plots import write_graph
from mm_rec.training.loop import LoopState

_FAMILIES = {"mmrec": "An MM-Rec", "llama": "A LLaMA-like"}


def write_summary(
    run: Path,
    base: str,
    model: PreTrainedModel,
    size: Size,
    card_lines: list[str],
    state: LoopState,
    ended: str,
    forgetting: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Write `training_log.json`, `training_parameters.json`, `training_graph.json/.png` and `README.md`.

    `forgetting`: bits a byte of the base's held-out text, `before` and `after`."""
    records = read_metrics(run / "metrics.jsonl")
    train = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "validation"]
    best = min(validation, key=lambda record: record["loss"], default=None)
    log = {
        "model_class": type(model).__name__,
        "base_model_name": base,
        "parameters": size.parameters,
        "ended": ended,
        "steps": state.step,
        "tokens": state.tokens,
        "first_loss": train[0]["loss"] if train else None,
        "last_loss": train[-1]["loss"] if train else None,
        "best_validation": best,
        "base_text_bits_per_byte": forgetting,
        "train_runtime_seconds": round(state.seconds, 3),
        "train_tokens_per_second": round(state.tokens / state.seconds, 1) if state.seconds else None,
        "train_steps_per_second": round(state.step / state.seconds, 4) if state.seconds else None,
    }
    write_json(run / "training_log.json", log)
    write_json(run / "training_parameters.json", load_yaml(run / RECIPE))
    write_graph(run, f"{run.name}: {model.config.model_type}, {size.parameters / 1e6:.2f} M parameters")
    write_text(run / "README.md", _model_card(run, model, size, card_lines, log))
    return log


def _model_card(
    run: Path,
    model: PreTrainedModel,
    size: Size,
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
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---
# {run.name}

{_FAMILIES.get(model.config.model_type, "A")} language model of {size.parameters:,} parameters, trained with MM-Rec.
It remembers by {state_text(model.config, size)}.

## Training

{text}
- {log["steps"]:,} steps, {log["tokens"]:,} tokens read, {log["train_runtime_seconds"]:,.0f} seconds ({log["ended"]})
- training loss {log["first_loss"]} → {log["last_loss"]}
- {measured}

![loss](training_graph.png)

All settings are in `recipe.yaml`, what it was made from in `lineage.json`, each measurement in `metrics.jsonl`.

## Use

    mmrec chat {run}
    mmrec generate {run} --prompt "…"
    mmrec evaluate {run} --text FILE

`final/` (the last weights) and `best/` (the lowest validation loss) are complete Hugging Face folders.

## Limits

A small model repeats patterns of its training text, false statements and prejudices included. It was not
aligned, and is no source of medical, legal or financial advice. The licence of the training text decides how
the weights may be used.
"""
