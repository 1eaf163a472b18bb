"""The kind `lora`: fine-tuning by an adapter beside a model that stays as it is."""

from __future__ import annotations

from mm_rec.pipeline.kinds import StageKind, train
from mm_rec.pipeline.sections import LoraSection
from mm_rec.pipeline.stages.sft import connect, prepare, require

KIND = StageKind(
    "lora",
    LoraSection,
    run=train,
    prepare=prepare,
    connect=connect,
    require=require,
)
