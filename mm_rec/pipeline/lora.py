"""An adapter beside a model that stays as it is: base → examples of several kinds → LoRA."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from mm_rec.data.conversations.rendering import TokenizedExample
from mm_rec.data.packing import padded_length
from mm_rec.data.prompt_lines import write_prompt_lines
from mm_rec.errors import ConfigError
from mm_rec.evaluation.finetune_eval import prompt_length
from mm_rec.models.adapter_folders import saved_settings
from mm_rec.models.adapters import Adapters, find_adapter
from mm_rec.models.loading import load_model_and_tokenizer
from mm_rec.models.lora import LoraConfig
from mm_rec.models.resize import resize_token_embeddings
from mm_rec.pipeline.examples import Examples, RunExamples
from mm_rec.pipeline.lora_examples import learns_conversations, learns_rows, read_lora_examples
from mm_rec.pipeline.recipe import LoraSection, Recipe
from mm_rec.pipeline.stage import Outcome, Prepare, Stage, measure_stage, run_stage
from mm_rec.pipeline.tuning import adopt_chat_layout, tuning_stage
from mm_rec.tokenizers.loading import load_tokenizer
from mm_rec.training.checkpoint import Checkpoint
from mm_rec.training.objectives import with_embedding_noise
from mm_rec.training.trainer import Reporter


def lora(
    recipe: Recipe, run: Path, reporter: Reporter, on_event: Callable[[str, int], None] | None = None
) -> Outcome:
    """Train an adapter in a run folder, or go on where an earlier call of it was stopped or killed.

    The run's folder is the adapter's: PEFT's two files, with the run's log, pictures and card beside them.
    """
    return run_stage(recipe, "lora", run, reporter, prepare_adapter(recipe), on_event)


def prepare_adapter(recipe: Recipe) -> Prepare:
    """How the section `lora` of a recipe is prepared; raises ConfigError where it has no model to begin with."""
    section = recipe.lora
    if section is None or section.start_from is None:
        raise ConfigError("no model to adapt: name one, for example `mmrec lora words.txt --from runs/tiny`")
    return partial(_prepare, section, recipe.seed)


def _prepare(
    section: LoraSection,
    seed: int,
    run: Path,
    reporter: Reporter,
    device: torch.device,
    checkpoint: Checkpoint | None,
) -> Stage:
    """The base as it is, an adapter on it, and what it is to learn."""
    assert section.start_from is not None
    model, own = load_model_and_tokenizer(section.start_from)
    adapters = Adapters(model, section.start_from)
    config, folder = _settings(section, checkpoint)
    tokenizer = _tokenizer(section, own, folder, reporter)
    resize_token_embeddings(model, tokenizer, reporter.say)
    added = tokenizer.get_vocab().keys() - own.get_vocab().keys() - {tokenizer.pad_token}
    if added and not config.train_head:
        config = config.changed(train_head=True)
        reporter.say("embedding and head are trained too: the new tokens would else mean nothing")
    if folder is None:
        adapters.train(config, seed)
    else:
        adapters.continue_training(config, folder)
    examples = read_lora_examples(section, tokenizer, model.config, reporter)
    if section.seq_len is None and not (section.text_share or learns_rows(section)):
        blocks = [*examples.held_out, *(block for blocks in examples.train.values() for block in blocks)]
        section = section.changed(seq_len=padded_length(len(block.ids) for block in blocks))
    _note_format(run, tokenizer, examples)
    stage = tuning_stage(section, run, reporter, device, model, tokenizer, examples)
    if not section.neftune_alpha:
        return stage
    plain = stage.objective
    return replace(stage, objective=lambda dtype: with_embedding_noise(plain(dtype), section.neftune_alpha))


def _settings(section: LoraSection, checkpoint: Checkpoint | None) -> tuple[LoraConfig, Path | None]:
    """What is trained, and the saved adapter that is gone on with, whose settings are kept but for the dropout.

    Raises ConfigError where others were asked for.
    """
    settings = {name: getattr(section, name) for name in LoraConfig.model_fields}
    if checkpoint is not None:
        folder = checkpoint.model_folder
    elif section.start_adapter is not None:
        folder = find_adapter(section.start_adapter)
    else:
        return LoraConfig(**settings), None
    saved = {name: value for name, value in saved_settings(folder).items() if name != "dropout"}
    for name, value in saved.items():
        if checkpoint is None and name in section.model_fields_set and settings[name] != value:
            raise ConfigError(
                f"{folder} has {name} {value}, and {settings[name]} was asked for. Leave {name} out, or begin a new "
                "adapter"
            )
    return LoraConfig(**{**settings, **saved}), folder


def _tokenizer(
    section: LoraSection, own: PreTrainedTokenizerBase, folder: Path | None, reporter: Reporter
) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved with an adapter, or the base's own, with a chat layout where one is needed."""
    if folder is not None and (folder / "tokenizer_config.json").is_file():
        return load_tokenizer(folder)
    tokenizer = deepcopy(own)
    if learns_conversations(section):
        adopt_chat_layout(tokenizer, section, reporter)
    return tokenizer


def _note_format(run: Path, tokenizer: PreTrainedTokenizerBase, examples: Examples) -> None:
    """Write down how the examples are written, so that another way of asking is noticed later."""
    rendered = [one for group in examples.train.values() for one in group]
    prompts = [str(tokenizer.decode(one.ids[: prompt_length(one)])) for one in rendered]
    asked = [prompt if prompt.strip() else one.text for prompt, one in zip(prompts, rendered, strict=True)]
    write_prompt_lines(run, asked, asked[0])


def check(recipe: Recipe, reporter: Reporter) -> None:
    """Say all that can be known before a training: what is learnt, how long it takes, what would suit better.

    Nothing is kept: three steps are measured at learning rate 0.
    """
    with tempfile.TemporaryDirectory() as folder:
        seen = measure_stage(recipe, "lora", Path(folder), reporter, prepare_adapter(recipe))
    settings, data = seen.settings, seen.stage.data
    assert isinstance(data, RunExamples)
    epoch = data.steps_per_epoch(settings)
    total = settings.steps * seen.seconds_per_step
    reporter.say(
        f"{epoch:.1f} steps an epoch, {settings.steps:,} in all; {seen.seconds_per_step:.2f} seconds a step, measured: "
        f"about {total / 60:.0f} minutes"
        + (f", {seen.peak_bytes / 1e9:.1f} GB of memory" if seen.peak_bytes else "")
    )
    reporter.say(
        f"suggested: --warmup-steps {max(1, round(min(100, settings.steps / 10, epoch)))}, "
        f"--save-every {max(1, settings.steps // 10)} to {max(1, settings.steps // 5)}"
    )
    for name, rendered in data.examples.train.items():
        shown = masked_text(seen.stage.tokenizer, rendered[0])
        reporter.say(f"{name}, the first example (learnt is what stands in ⟦ ⟧):\n{shown}")


def masked_text(tokenizer: PreTrainedTokenizerBase, rendered: TokenizedExample) -> str:
    """An example's text with what is learnt of it in ⟦ ⟧."""
    changes = np.flatnonzero(np.diff(rendered.loss_mask)) + 1
    pieces = []
    for ids, loss_mask in zip(
        np.split(rendered.ids, changes), np.split(rendered.loss_mask, changes), strict=True
    ):
        text = str(tokenizer.decode(ids))
        pieces.append(f"⟦{text}⟧" if loss_mask[0] else text)
    return "".join(pieces)
