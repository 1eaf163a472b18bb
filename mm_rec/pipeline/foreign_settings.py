"""The names that other tools give to the settings of an adapter, and ours: so that their settings can be used here.

One table, which the documentation prints too (docs/lora.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mm_rec.config import merge
from mm_rec.errors import ConfigError
from mm_rec.pipeline.former_recipes import is_former, upgrade
from mm_rec.pipeline.sections import LoraSection
from mm_rec.runs.files import read_json
from mm_rec.training.section import Optimizer

PARAMETERS = "training_parameters.json"
# Of one run, what it learnt from or what followed from it; not to be copied to another.
_OWN = (
    "kind",
    "name",
    "given",
    "start_from",
    "seed",
    "data",
    "validation",
    "steps",
    "seq_len",
    "validate_every",
    "checkpoint_every",
    "compile",
    "threads",
)

Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Name:
    """A setting of other tools: its names there, ours as a dotted key of `lora` ("" for none), and a note."""

    theirs: tuple[str, ...]
    ours: str
    note: str = ""
    convert: Convert = lambda value: value


def _none_if_zero(value: Any) -> Any:
    return value if float(value) else None


def _targets(value: Any) -> str:
    """q-v and [q_proj, v_proj] alike."""
    parts = value if isinstance(value, list) else str(value).replace("-", "+").replace(",", "+").split("+")
    joined = "+".join(str(part).strip().removesuffix("_proj") for part in parts)
    return "all-linear" if joined in ("all", "all+linear") else joined


def _schedule(value: Any) -> Any:
    known = {"polynomial": "linear", "constant_with_warmup": "constant", "FP_raise_fall_creative": "cosine"}
    held = ("FP_low_epoch_annealing", "FP_half_time_annealing", "FP_3epoch_raise_hold_fall")
    return known.get(str(value), "wsd" if value in held else value)


NAMES = [
    Name(("lora_name",), "", "the run's name: --name"),
    Name(("always_override",), "", "a run is never overwritten; go on with --resume or --start-adapter"),
    Name(("model_name_or_path", "base_model"), "start_from"),
    Name(("adapter_name_or_path", "start_adapter"), "adapter.start_from"),
    Name(("lora_rank", "lora_r", "r", "rank"), "adapter.rank"),
    Name(("lora_alpha", "alpha"), "adapter.alpha"),
    Name(("lora_dropout", "dropout"), "adapter.dropout"),
    Name(("lora_RS", "use_rslora", "rslora"), "adapter.rslora", convert=bool),
    Name(("lora_RS_alpha",), "", "alpha serves both"),
    Name(("use_dora", "dora"), "adapter.dora", convert=bool),
    Name(("pissa_init",), "adapter.init", convert=lambda value: "pissa" if value else "zero"),
    Name(("loraplus_lr_ratio", "lora_plus"), "adapter.lora_plus", convert=lambda value: _none_if_zero(value) or 1.0),
    Name(
        ("training_projection", "lora_target", "target_modules", "targets"), "adapter.targets", "q-v is q+v", _targets
    ),
    Name(
        ("lora_modulessave", "additional_target", "modules_to_save", "train_head"), "adapter.train_head",
        "embedding and head", bool,
    ),
    Name(("micro_batch_size", "per_device_train_batch_size"), "batch_size", "rows; several examples may share one"),
    Name(("grad_accumulation", "gradient_accumulation_steps"), "accumulation"),
    Name(("num_train_epochs",), "epochs"),
    Name(("max_steps",), "steps", convert=lambda value: value if float(value) > 0 else None),
    Name(("lr_scheduler_type",), "schedule", "the FP_ schedules are wsd: see below", _schedule),
    Name(("warmup_ratio",), "", "give warmup_steps"),
    Name(("optim",), "optimizer", "adamw or muon", lambda value: "muon" if "muon" in str(value) else "adamw"),
    Name(("max_grad_norm",), "clip"),
    Name(("neft_noise_alpha", "neftune_noise_alpha"), "neftune_alpha"),
    Name(("use_grad_checkpoint",), "gradient_checkpointing", convert=bool),
    Name(("bf16", "fp16", "compute_type"), "", "the machine decides, or --precision bfloat16, float16 or float32"),
    Name(("save_steps",), "save_every", convert=_none_if_zero),
    Name(("save_steps_under_loss",), "save_below_loss", convert=_none_if_zero),
    Name(("logging_steps",), "log_every"),
    Name(("eval_steps", "eval_stepsJSONL"), "validate_every"),
    Name(("evaluation_strategy", "eval_strategy"), "", "validation is measured every validate_every steps"),
    Name(("save_strategy",), "", "see save_every, save_below_loss and checkpoint_every"),
    Name(("val_size",), "validation_fraction"),
    Name(("cutoff_len",), "text_slices.chunk_length", "of raw text; for conversations max_length"),
    Name(("add_bos_token",), "text_slices.add_bos", convert=bool),
    Name(("add_eos_token",), "text_slices.add_eos", convert=bool),
    Name(
        ("add_eos_token_type",), "text_slices.eos_placement",
        convert=lambda value: "hard_cut" if "Hard" in str(value) else "every_block",
    ),
    Name(
        ("eliminate_long_blocks",), "text_slices.too_long",
        convert=lambda value: "drop" if value else "trim",
    ),
    Name(("precize_slicing_overlap",), "text_slices.overlap", convert=bool),
    Name(("sliding_window",), "text_slices.sliding_window", convert=bool),
    Name(("hard_cut_string",), "text_slices.hard_cut"),
    Name(("min_chars",), "text_slices.min_chars"),
    Name(("train_only_after",), "text_slices.train_only_after"),
    Name(("format",), "prompt_format", convert=lambda value: None if value in (None, "None", "") else value),
    Name(("mask_history",), "train_on", convert=lambda value: "last" if value else "all"),
    Name(("train_on_prompt",), "", "prompts are never learnt; raw text (.txt) is learnt whole"),
    Name(("group_by_length", "packing", "neat_packing"), "", "examples are always packed, and kept apart"),
    Name(("dataset", "datasetJSONL", "raw_text_file", "dataset_dir"), "", "the files of the command"),
    Name(("eval_dataset", "eval_datasetJSONL"), "", "--validation FILES"),
    Name(("hybrid_training", "hybrid_data_ratio", "hybrid_text_ratio"), "", "the weights of lora.data"),
    Name(("report_to",), "tensorboard", convert=lambda value: "tensorboard" in str(value)),
    Name(("higher_rank_limit",), "", "no limit is set"),
]  # fmt: skip
_BY_NAME = {theirs: name for name in NAMES for theirs in name.theirs}


def names_table() -> str:
    """The table in Markdown, for the documentation."""
    rows = []
    for name in NAMES:
        theirs = ", ".join(f"`{one}`" for one in name.theirs)
        rows.append(f"| {theirs} | {f'`{name.ours}`' if name.ours else '–'} | {name.note} |")
    return "\n".join(["| theirs | ours, in the section `lora` | |", "|---|---|---|", *rows])


def translate(values: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Settings of `lora` by our names; what other tools name otherwise is renamed, and a note says so.

    A name that is ours stays, and wins; one that nobody knows stays too, for the recipe to complain about.
    """
    result: dict[str, Any] = {}
    for key, value in values.items():
        if (name := _foreign_name(key, value)) is None:
            continue
        if not name.ours:
            say(f"{key} has no use here: {name.note}")
            continue
        converted = name.convert(value)
        say(f"{key} is called lora.{name.ours} here: {converted}")
        _set(result, name.ours, converted)
    ours = {key: value for key, value in values.items() if _foreign_name(key, value) is None}
    return merge(result, ours)


def _foreign_name(key: str, value: Any) -> Name | None:
    """The entry of a setting that other tools name so; None where the name is ours, or nobody's."""
    if key == "optimizer" and value not in (None, *get_args(Optimizer)):
        return _BY_NAME["optim"]
    return None if key in LoraSection.model_fields else _BY_NAME.get(key)


def read_parameters(path: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The settings of an earlier run, its folder or `training_parameters.json`, ours or Training PRO's.

    What the run learnt from, and where it began, are left out. Training PRO counts warm-up and saves in batches and not
    in optimizer steps: they are divided by its accumulation.
    """
    file = path / PARAMETERS if path.is_dir() else path
    values = read_json(file)
    stages = upgrade(values)["stages"] if is_former(values) else values.get("stages")
    if isinstance(stages, list):
        return _of_run(stages, file)
    if not values.keys() & _BY_NAME.keys():
        raise ConfigError(f"{file}: these are no parameters of an adapter (neither ours nor Training PRO's)")
    known = {key: value for key, value in values.items() if value not in (None, "None", "")}
    every = max(1, int(known.get("grad_accumulation", 1)))
    for key in ("warmup_steps", "save_steps", "eval_steps"):
        if key in known and "micro_batch_size" in known:
            known[key] = math.ceil(float(known[key]) / every)
    known.pop("batch_size", None)  # a leftover of older versions, always 0
    found = translate(known, say)
    for key in ("learning_rate", "epochs", "stop_at_loss", "stop_at_epoch"):
        if key in found:
            found[key] = float(found[key]) or None
    return {key: value for key, value in found.items() if value is not None}


def _of_run(stages: list[dict[str, Any]], file: Path) -> dict[str, Any]:
    """The settings of a run of ours that made an adapter, but for what is its own."""
    section = next((stage for stage in stages if stage.get("adapter")), None)
    if section is None:
        raise ConfigError(f"{file}: this run made no adapter")
    kept = {key: value for key, value in section.items() if key not in _OWN and value is not None}
    adapter = {key: value for key, value in (kept.get("adapter") or {}).items() if key != "start_from"}
    return {**kept, "adapter": adapter} if adapter else kept


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, key = dotted.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    values[key] = value
