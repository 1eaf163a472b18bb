"""Recipes as they were before they had stages: a section for each stage at the top."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm_rec.errors import ConfigError

_PRETRAIN = ("data", "tokenizer", "model", "pretrain")
_TUNING = ("instruct", "sft")
_KEYS = (*_PRETRAIN, *_TUNING, "lora")
_ADAPTER = ("rank", "alpha", "dropout", "targets", "rslora", "dora", "init", "train_head", "lora_plus")


def is_former(values: Mapping[str, Any]) -> bool:
    """True where plain values are a recipe of the former form."""
    return "stages" not in values and any(key in values for key in _KEYS)


def upgrade(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe of the former form in the present one; raises ConfigError where a section is no mapping."""
    for key in _KEYS:
        if not isinstance(values.get(key) or {}, dict):
            raise ConfigError(f"{key}: this is not a mapping of settings (it is {values[key]!r})")
    stages = []
    data = values.get("data") or {}
    if data.get("sources") or data.get("prepared") or not any(values.get(key) for key in (*_TUNING, "lora")):
        stages.append(_pretrain(values))
    stages += [
        {"kind": "sft", "name": name, **values[name]} for name in _TUNING if values.get(name) is not None
    ]
    if values.get("lora") is not None:
        stages.append({"kind": "lora", "name": "lora", **_lora(values["lora"])})
    top = {key: values[key] for key in values if key not in _KEYS}
    return {**top, "stages": stages}


def _pretrain(values: Mapping[str, Any]) -> dict[str, Any]:
    data = dict(values.get("data") or {})
    if "stages" in data:
        data["phases"] = data.pop("stages")
    parts = {"data": data, "tokenizer": values.get("tokenizer"), "model": values.get("model")}
    return {
        "kind": "pretrain",
        "name": "pretrain",
        **{key: part for key, part in parts.items() if part},
        **(values.get("pretrain") or {}),
    }


def _lora(section: Mapping[str, Any]) -> dict[str, Any]:
    """The adapter's own settings have a section of their own."""
    adapter = {key: section[key] for key in _ADAPTER if key in section}
    if section.get("start_adapter") is not None:
        adapter["start_from"] = section["start_adapter"]
    rest = {key: value for key, value in section.items() if key not in (*_ADAPTER, "start_adapter")}
    return {"adapter": adapter, **rest} if adapter else rest
