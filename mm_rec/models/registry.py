"""Makes MM-Rec and the attention function known to transformers."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from mm_rec.models import attention
from mm_rec.models.mmrec.configuration_mmrec import MMRecConfig
from mm_rec.models.mmrec.modeling_mmrec import MMRecForCausalLM, MMRecModel


def register() -> None:
    """Register the family with the Auto classes; calling it again changes nothing."""
    AutoConfig.register("mmrec", MMRecConfig, exist_ok=True)
    AutoModel.register(MMRecConfig, MMRecModel, exist_ok=True)
    AutoModelForCausalLM.register(MMRecConfig, MMRecForCausalLM, exist_ok=True)
    MMRecConfig.register_for_auto_class()
    MMRecForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    attention.register()
    disable_progress_bar()  # bars for reading a file of a few megabytes stand in the way of ours
