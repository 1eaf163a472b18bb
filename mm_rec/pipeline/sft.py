"""Fine-tuning on conversations, for instructions or chat: base → tokenizer with a chat layout → answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from mm_rec.errors import ConfigError
from mm_rec.models.loading import load_model_and_tokenizer
from mm_rec.models.resize import align_special_tokens, resize_token_embeddings
from mm_rec.pipeline.conversations import read_conversation_examples
from mm_rec.pipeline.recipe import Recipe, SftSection
from mm_rec.pipeline.stage import Outcome, Prepare, Stage, run_stage
from mm_rec.pipeline.tuning import adopt_chat_layout, tuning_stage
from mm_rec.training.checkpoint import Checkpoint
from mm_rec.training.trainer import Reporter


def sft(
    recipe: Recipe,
    run: Path,
    reporter: Reporter,
    on_event: Callable[[str, int], None] | None = None,
    section: str = "sft",
) -> Outcome:
    """Fine-tune in a run folder, or go on where an earlier call of it was stopped or killed.

    `section` is the recipe's: "instruct" or "sft".
    """
    return run_stage(recipe, section, run, reporter, prepare_tuning(recipe, section), on_event)


def prepare_tuning(recipe: Recipe, section: str) -> Prepare:
    """How a fine-tuning section of a recipe is prepared; raises ConfigError where it has no model to begin with."""
    chosen: SftSection | None = getattr(recipe, section)
    if chosen is None or chosen.start_from is None:
        raise ConfigError(
            "no model to fine-tune: name one, for example `mmrec sft chats.jsonl --from runs/tiny`"
        )
    return partial(_prepare, chosen)


def _prepare(
    section: SftSection, run: Path, reporter: Reporter, device: torch.device, checkpoint: Checkpoint | None
) -> Stage:
    """Model, tokenizer with its layout, conversations, and the text that must not be forgotten."""
    assert section.start_from is not None
    model, tokenizer = load_model_and_tokenizer(
        section.start_from if checkpoint is None else checkpoint.model_folder
    )
    if checkpoint is None:
        adopt_chat_layout(tokenizer, section, reporter)
        resize_token_embeddings(model, tokenizer, reporter.say)
        align_special_tokens(model, tokenizer)
    examples = read_conversation_examples(section, tokenizer, model.config, reporter)
    return tuning_stage(section, run, reporter, device, model, tokenizer, examples)
