"""An adapter as a setting of a training stage: new, gone on with, or that of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from mm_rec.errors import ConfigError
from mm_rec.models.adapter_folders import saved_settings
from mm_rec.models.adapters import Adapters, find_adapter
from mm_rec.models.sections import LoraConfig
from mm_rec.pipeline.training_job import TrainingContext
from mm_rec.training.section import TrainSection


def attach_adapter(
    adapters: Adapters, section: TrainSection, context: TrainingContext, train_head: bool = False
) -> None:
    """Put the adapter of a section on a model, to be trained; all the rest is frozen.

    `train_head` trains embedding and head too, whatever the section says.
    """
    config, folder = adapter_settings(section, context)
    if train_head and not config.train_head:
        config = config.replace(train_head=True)
        context.reporter.say("embedding and head are trained too: the new tokens would else mean nothing")
    if folder is None:
        adapters.train(config, context.seed)
    else:
        adapters.continue_training(config, folder)


def adapter_settings(section: TrainSection, context: TrainingContext) -> tuple[LoraConfig, Path | None]:
    """Return the adapter's settings, and the folder of a saved one to continue; its settings are kept but for dropout.

    Raises ConfigError where others were asked for.
    """
    adapter = section.adapter
    assert adapter is not None
    settings = {name: getattr(adapter, name) for name in LoraConfig.model_fields}
    if context.checkpoint is not None:
        folder = context.checkpoint.model_folder
    elif adapter.start_from is not None:
        folder = find_adapter(adapter.start_from)
    else:
        return LoraConfig(**settings), None
    saved = {name: value for name, value in saved_settings(folder).items() if name != "dropout"}
    for name, value in saved.items():
        if context.checkpoint is None and name in adapter.model_fields_set and settings[name] != value:
            raise ConfigError(
                f"{folder} has {name} {value}, and {settings[name]} was asked for. Leave {name} out, or begin a new "
                "adapter"
            )
    return LoraConfig(**{**settings, **saved}), folder
