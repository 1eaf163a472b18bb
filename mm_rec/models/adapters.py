"""Adapters: small trained matrices beside a model that stays as it is.

An adapter folder is PEFT's (`adapter_config.json`, `adapter_model.safetensors`), with `base.json` beside it, which says
what model it belongs to. The model's own object is changed in place, so all that runs a model runs an adapted one;
`Adapters` trains, loads, weighs, switches, removes and merges them.
"""

from __future__ import annotations

import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from mm_rec.errors import CheckpointError, ConfigError, truncated
from mm_rec.models.adapter_folders import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_FILE,
    read_config,
    read_tensors,
)
from mm_rec.models.dropout import FastDropout
from mm_rec.models.fingerprint import model_fingerprint
from mm_rec.models.lora import (
    START,
    TRAINED,
    init_pissa,
    lora_layers,
    lora_to_pissa,
    peft_config,
    pissa_lora_alpha,
    pissa_to_lora,
)
from mm_rec.models.peft_workarounds import ignore_other_token_rows, require_no_nesting, suppress_peft_warnings
from mm_rec.models.sections import LoraConfig
from mm_rec.runs.files import read_json, write_json

_NAME_PREFIX = "adapter_"  # before the names in PEFT, which takes those that are a part of "lora_" amiss
_PREFIX = "base_model.model."  # before all names in PEFT's files


class Adapters:
    """The adapters of one model, by name. Several are applied at once: their effects are added, each times its weight.

    Make it before anything else is changed in the model: it notes what model this is.
    """

    def __init__(self, model: PreTrainedModel, name: str) -> None:
        """`name` is that of the base, for people."""
        self.model = model
        self.base = {
            "name": name,
            "class": type(model).__name__,
            "vocabulary": model.config.get_text_config().vocab_size,
            "fingerprint": model_fingerprint(model),
        }
        self.weights: dict[str, float] = {}
        self.loaded: dict[str, float] = {}  # each with the weight that it was loaded with
        self._training: LoraConfig | None = None
        self._peft: Any = None
        model.adapters = self  # type: ignore[assignment]  # no module: it is found by `adapters_of`

    @property
    def names(self) -> list[str]:
        """All that are loaded, applied or not."""
        return [name.removeprefix(_NAME_PREFIX) for name in getattr(self._peft, "peft_config", ())]

    @property
    def is_additive(self) -> bool:
        """True where the active adapters only add to what the model computes, and replace none of its parts."""
        return all(map(self._is_additive, self.weights))

    @property
    def description(self) -> str:
        """The trained adapter in a line."""
        assert self._training is not None
        config = self._training
        extras = [name for name in ("rslora", "dora", "train_head") if getattr(config, name)]
        extras += ["pissa"] if config.init == "pissa" else []
        return (
            f"Rank {config.rank}, alpha {config.effective_alpha:g}, dropout {config.dropout:g}, on {config.targets}"
            + (f" ({', '.join(extras)})" if extras else "")
            + "."
        )

    def train(self, config: LoraConfig, seed: int) -> None:
        """Put a new adapter on the model, to be trained; all the rest is frozen.

        Raises ConfigError for targets that are not there, or that PEFT has no adapter for.
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            try:
                self._inject(TRAINED, peft_config(self.model, config))
                self._require_running()
            except (ValueError, RuntimeError, AttributeError, TypeError) as error:  # PEFT's fail in many ways
                raise ConfigError(
                    f"targets: {config.targets} cannot be adapted in models of the kind "
                    f"{self.model.config.model_type!r} with these settings ({truncated(str(error))})"
                ) from error
            for _, layer in lora_layers(self.model):
                if config.dropout and TRAINED in layer.lora_dropout:
                    layer.lora_dropout[TRAINED] = FastDropout(config.dropout).train(self.model.training)
            if config.init == "pissa":
                self._inject_start()
                init_pissa(self.model)
        self._training = config
        self._apply([TRAINED, START] if config.init == "pissa" else [TRAINED], trained=True)

    @torch.no_grad()
    def _require_running(self) -> None:
        """Read a few tokens: PEFT also wraps what it cannot run, such as routers that give more than one tensor."""
        ids = torch.arange(8, device=self.model.device)[None] % self.model.config.get_text_config().vocab_size
        self.model(input_ids=ids, use_cache=False)

    def continue_training(self, config: LoraConfig, folder: Path) -> None:
        """As `train`, going on from a saved adapter; raises CheckpointError where its shape is another."""
        tensors = self._read(folder, rank=config.rank * (2 if config.init == "pissa" else 1))
        self.train(config.replace(init="zero"), seed=0)
        if config.init == "pissa":
            self._inject_start()
            tensors, start = lora_to_pissa(tensors)
            self._load_tensors(START, start, folder)
            for _, layer in lora_layers(self.model):
                layer.scaling[START] = -layer.scaling[TRAINED]
            self._apply([TRAINED, START], trained=True)
        self._load_tensors(TRAINED, tensors, folder)
        self._training = config

    def load(self, name: str, folder: Path, weight: float = 1.0) -> None:
        """Read a finished adapter and apply it, times a weight, beside those that are.

        Raises CheckpointError where it is damaged or of another base, ConfigError where it cannot be added to others.
        """
        tensors, config = self._read(folder), read_config(folder)
        bias, config.bias = config.bias, "none"  # or PEFT would have them taken for its own from now on
        before = dict(self.model.named_modules())
        try:
            self._inject(_NAME_PREFIX + name, config)
            require_no_nesting(self.model)
        except Exception as error:  # PEFT raises many kinds, of parts that the model has not
            self._undo_injection(before, _NAME_PREFIX + name)
            raise self._mismatch_error(folder, error) from error
        try:
            self._load_tensors(_NAME_PREFIX + name, self._without_base(tensors, folder, bias), folder)
            self.apply({**self.weights, name: weight})
        except (CheckpointError, ConfigError):
            self.remove(name)
            raise
        self.loaded[name] = weight

    def apply(self, weights: dict[str, float]) -> None:
        """Apply these and no others, each times its weight; none at all is the base. Nothing is read again."""
        for name in weights:
            if name not in self.names:
                known = ", ".join(self.names) or "none"
                raise ConfigError(f"there is no adapter {name!r}; loaded are {known}")
        whole = [name for name in weights if not self._is_additive(name)]
        if whole and (len(weights) > 1 or weights[whole[0]] != 1):
            raise ConfigError(
                f"the adapter {whole[0]!r} has parts of the model of its own (train_head, modules_to_save, "
                "trainable_token_indices) or is a DoRA, whose effect is no sum: it is applied alone and whole, not "
                "with others, and with no weight but 1"
            )
        self.weights = dict(weights)
        self._apply([_NAME_PREFIX + name for name in weights])
        for _, layer in lora_layers(self.model):
            for name, weight in weights.items():
                layer.set_scale(_NAME_PREFIX + name, weight)

    def remove(self, name: str) -> None:
        """Take an adapter off the model for good."""
        self.weights.pop(name, None)
        self.loaded.pop(name, None)
        with suppress_peft_warnings():
            self._peft.delete_adapter(_NAME_PREFIX + name)
        if self.names:
            self.apply(self.weights)
        else:
            self.unload()

    def unload(self) -> None:
        """Take every adapter off: the model is the base again, the same bits."""
        if self._peft is not None:
            with suppress_peft_warnings():
                for name in list(self._peft.peft_config):  # or a trained head would be left in place
                    self._peft.base_model.delete_adapter(name)
                self._peft.unload()
        self._clear()

    def merge(self) -> None:
        """Add what is applied to the weights; the model is then an ordinary one."""
        if not self.weights:
            self.unload()
            return
        self._untie()
        try:
            with suppress_peft_warnings():
                self._peft.merge_and_unload(
                    safe_merge=True, adapter_names=[_NAME_PREFIX + name for name in self.weights]
                )
        # A bias of its own (lora_bias) where the model has none; no numbers.
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"the adapter cannot be merged ({truncated(str(error))}). Use it beside its model"
            ) from error
        self._clear()

    def save(self, folder: Path) -> None:
        """Write the trained adapter as PEFT reads it; each file is replaced at once."""
        import peft

        assert self._training is not None
        config = deepcopy(self._peft.peft_config[TRAINED])
        tensors = peft.get_peft_model_state_dict(
            self._peft, adapter_name=TRAINED, save_embedding_layers=False
        )
        if self._training.init == "pissa":
            start = peft.get_peft_model_state_dict(
                self._peft, adapter_name=START, save_embedding_layers=False
            )
            tensors = pissa_to_lora(tensors, start)
            config.r, config.lora_alpha = 2 * self._training.rank, pissa_lora_alpha(self._training)
        config.inference_mode, config.base_model_name_or_path = True, self.base["name"]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".adapter-", suffix=".tmp") as temporary:
            # A copy of each: embedding and head may be one tensor, and PEFT reads both.
            whole = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
            save_file(whole, Path(temporary) / ADAPTER_WEIGHTS, metadata={"format": "pt"})
            config.save_pretrained(temporary)
            for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
                (Path(temporary) / name).replace(folder / name)
        write_json(folder / BASE_FILE, {**self.base, "lora": self._training.model_dump()})

    def _untie(self) -> None:
        """Give the head weights of its own where an adapter is merged into the embedding that it shares, or into it."""
        head, table = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        for _, layer in lora_layers(self.model):
            if layer in (head, table) and head.weight is table.weight:
                plain = head.get_base_layer() if layer is head else head
                plain.weight = nn.Parameter(plain.weight.detach().clone(), requires_grad=False)
                self.model.config.get_text_config().tie_word_embeddings = False

    def _inject(self, name: str, config: Any) -> None:
        import peft

        with suppress_peft_warnings():
            if self._peft is None:
                self._peft = peft.get_peft_model(self.model, config, adapter_name=name)
            else:
                self._peft.add_adapter(name, config)
        self.model.train(self.model.training)  # what is new too, or its dropout would be at work

    def _undo_injection(self, modules: dict[str, nn.Module], name: str) -> None:
        """Take out what an adapter that could not be injected has put around and into the model's modules."""
        from peft.functional import delete_adapter

        for path, module in modules.items():  # outer ones come first
            if self.model.get_submodule(path) is not module:
                self.model.set_submodule(path, module)
        with suppress_peft_warnings():
            delete_adapter(self.model, name, prefix="lora_")
        if self._peft is not None:
            self._peft.peft_config.pop(name, None)
        if self.names:
            self.apply(self.weights)
        else:
            self._clear()

    def _inject_start(self) -> None:
        """A second adapter on the same projections, which is to stay as it is."""
        config = deepcopy(self._peft.peft_config[TRAINED])
        config.lora_dropout, config.modules_to_save = 0.0, None
        self._inject(START, config)

    def _apply(self, names: list[str], trained: bool = False) -> None:
        """Let PEFT apply these; with `trained`, gradients flow to the trained one and to nothing else."""
        if self._peft is None:
            return
        tuner = self._peft.base_model
        if not names:
            tuner.disable_adapter_layers()
            return
        tuner.enable_adapter_layers()
        tuner.set_adapter(names if len(names) > 1 else names[0], inference_mode=not trained)
        if START in names:
            for name, parameter in self.model.named_parameters():
                if f".{START}." in name:
                    parameter.requires_grad_(False)

    def _read(self, folder: Path, rank: int | None = None) -> dict[str, Tensor]:
        """An adapter's tensors, after it was seen to be of this base (and of this rank)."""
        tensors, found = read_tensors(folder), read_config(folder).r
        if rank is not None and found != rank:
            raise CheckpointError(
                f"{folder}: this adapter has rank {found}, and rank {rank} was asked for. A rank cannot change: "
                f"give --rank {found}, or begin a new adapter"
            )
        if (folder / BASE_FILE).is_file():
            self._require_same_base(folder, read_json(folder / BASE_FILE))
        return tensors

    def _require_same_base(self, folder: Path, base: dict[str, Any]) -> None:
        if base["fingerprint"] != self.base["fingerprint"]:
            raise CheckpointError(
                f"{folder}: this adapter was trained on {_describe(base)}, and this model is {_describe(self.base)} "
                "with other weights. Give the adapter its own base"
            )

    def _without_base(self, tensors: dict[str, Tensor], folder: Path, bias: str) -> dict[str, Tensor]:
        """Leave out what PEFT would write over the base itself; raises CheckpointError where that is not the base's."""
        base = self._peft.state_dict()
        for name in tensors.keys() & base.keys():
            there, here = tensors[name], base[name]
            if there.shape != here.shape or not torch.equal(there.to(here), here):
                raise CheckpointError(
                    f"{folder}: {name.removeprefix(_PREFIX)} of the base itself was changed and saved with it "
                    f"({'an enlarged vocabulary' if bias == 'none' else f'the setting bias={bias}'}), and no adapter "
                    f"changes the model {self.base['name']} here. Merge it with PEFT and give the merged model"
                )
        return {name: tensor for name, tensor in tensors.items() if name not in base}

    def _load_tensors(self, name: str, tensors: dict[str, Tensor], folder: Path) -> None:
        """Fill an injected adapter; raises CheckpointError where the tensors are not those that it has."""
        import peft

        with ignore_other_token_rows(self.model, name):
            own = peft.get_peft_model_state_dict(
                self._peft, self._peft.state_dict(), adapter_name=name, save_embedding_layers=False
            )
        for key in own.keys() & tensors.keys():
            if own[key].shape != tensors[key].shape:
                shapes = f"{key.removeprefix(_PREFIX)} is {list(tensors[key].shape)}, and {list(own[key].shape)} here"
                raise self._mismatch_error(folder, shapes)
        try:
            with ignore_other_token_rows(self.model, name):
                result: Any = peft.set_peft_model_state_dict(self._peft, tensors, adapter_name=name)
        except (RuntimeError, KeyError, ValueError) as error:
            raise self._mismatch_error(folder, error) from error
        for what, keys in (("it lacks", result.missing_keys), ("it has", result.unexpected_keys)):
            if found := [key for key in keys if f".{name}." in key or what == "it has"]:
                key = found[0].removeprefix(_PREFIX).replace(f".{name}", "")
                raise self._mismatch_error(folder, f"{what} {key}")

    def _mismatch_error(self, folder: Path, why: object) -> CheckpointError:
        return CheckpointError(
            f"{folder}: it does not fit the model {self.base['name']} ({truncated(str(why))}). Give the base that it "
            f"was trained on{', or load it without ' + ', '.join(self.loaded) if self.loaded else ''}"
        )

    def _is_additive(self, name: str) -> bool:
        config = self._peft.peft_config[_NAME_PREFIX + name]
        return not (config.modules_to_save or config.trainable_token_indices or config.use_dora)

    def _clear(self) -> None:
        self._peft, self._training, self.weights, self.loaded = None, None, {}, {}
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config


def _describe(base: dict[str, Any]) -> str:
    return f"{base['name']} ({base['class']}, vocabulary {base['vocabulary']:,})"


def adapters_of(model: PreTrainedModel) -> Adapters | None:
    """The adapters that were put on a model; None for a plain one."""
    found = getattr(model, "adapters", None)
    return found if isinstance(found, Adapters) and found.names else None


def apply_adapters(model: PreTrainedModel, weights: dict[str, float]) -> None:
    """Apply these adapters of a model and no others, where others are applied."""
    on_model = adapters_of(model)
    if on_model is not None and on_model.weights != weights:
        on_model.apply(weights)


def find_adapter(path: Path | str) -> Path:
    """The adapter folder that a path means: itself, or a run's `best` or newest checkpoint where it is not finished.

    Raises CheckpointError with what was looked for.
    """
    path = Path(path)
    if path.suffix == ".gguf":
        raise CheckpointError(f"{path}: GGUF is a format for inference. Give the adapter's own folder")
    candidates = [path, path / "best", path / "model"]
    candidates += sorted((path / "checkpoints").glob("step-*/model"), reverse=True)
    for candidate in candidates:
        if (candidate / ADAPTER_CONFIG).is_file():
            return candidate
    raise CheckpointError(
        f"{path}: no adapter here (looked for {ADAPTER_CONFIG} in it, in best/ and checkpoints/). Give the folder of a "
        "`mmrec lora` run, or another folder that PEFT wrote"
    )
