"""The kind `lora`: fine-tuning by an adapter beside a model that stays as it is."""

from __future__ import annotations

from mm_rec.pipeline.sections import LoraSection
from mm_rec.pipeline.stages.sft import connect, prepare, require
from mm_rec.pipeline.training_kind import training_kind

KIND = training_kind(
    "lora",
    LoraSection,
    prepare,
    connect=connect,
    require=require,
)
