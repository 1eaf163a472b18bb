"""Fine-tuning, of all weights or of an adapter: what is learnt, measured, shown, and not forgotten."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.data.packing import padded_length
from mm_rec.data.prepare import PreparedCorpus, open_prepared, plan_sources, prepare_corpus
from mm_rec.data.prompt_lines import write_prompt_lines
from mm_rec.errors import ConfigError
from mm_rec.evaluation.finetune_eval import answer_samples, prompt_length, score_assistant_tokens
from mm_rec.evaluation.perplexity import evaluate_corpus
from mm_rec.models.adapters import Adapters
from mm_rec.models.forward import require_packing_support
from mm_rec.models.loading import find_model, load_model_and_tokenizer
from mm_rec.models.resize import align_special_tokens, resize_token_embeddings
from mm_rec.models.traits import traits_of
from mm_rec.pipeline.adapter import adapter_settings, attach_adapter
from mm_rec.pipeline.base_text import base_text
from mm_rec.pipeline.examples import learns_conversations, learns_rows, read_examples
from mm_rec.pipeline.finetune_data import Examples, FinetuneData, pad_id, plan_rows
from mm_rec.pipeline.sections import FinetuneSection
from mm_rec.pipeline.training_job import TrainingContext, TrainingJob
from mm_rec.runs.files import read_json, write_json, write_text
from mm_rec.runs.metrics import BASE_BITS_PER_BYTE, LOSS, TOKEN_ACCURACY
from mm_rec.runs.metrics_log import METRICS_FILE, read_metrics
from mm_rec.runtime import Precision
from mm_rec.tokenizers.chat_template import (
    known_chat_template,
    prepare_for_chat,
    require_pad_token,
    require_template,
)
from mm_rec.tokenizers.loading import load_tokenizer
from mm_rec.training.interfaces import Reporter, Validation
from mm_rec.training.objectives import carried_next_token, next_token
from mm_rec.training.section import ResolvedTrainSection

FORGETTING = "forgetting.json"
SAMPLES = "samples.jsonl"
_EPOCHS = 3.0
_MOST_TEXT_ROWS = 64  # of the base's held-out text, measured at each validation
_TEXT_SEQ_LEN = 512
_MUCH_LOST = 1.1


def require_base(section: FinetuneSection) -> None:
    """Raise ConfigError where there is no model to begin with."""
    if section.start_from is None:
        command = "sft chats.jsonl" if section.adapter is None else "lora words.txt"
        raise ConfigError(f"no model to begin with: name one, for example `mmrec {command} --from runs/tiny`")


def prepare_finetuning(section: FinetuneSection, context: TrainingContext) -> TrainingJob:
    """Model, tokenizer with its layout, examples, and the text that must not be forgotten."""
    require_base(section)
    begin = _whole_model if section.adapter is None else _with_adapter
    model, tokenizer = begin(section, context)
    examples = read_examples(section, tokenizer, model.config, context.reporter)
    if section.seq_len is None and not (section.text_share or learns_rows(section)):
        blocks = [*examples.held_out, *(block for blocks in examples.train.values() for block in blocks)]
        section = section.replace(seq_len=padded_length(len(block.ids) for block in blocks))
    if section.adapter is not None:
        _note_format(context.run, tokenizer, examples)
    return _job(section, context, model, tokenizer, examples)


def _whole_model(
    section: FinetuneSection, context: TrainingContext
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model to train, all of it: the base with a vocabulary for the chat layout, or that of a checkpoint."""
    assert section.start_from is not None
    checkpoint = context.checkpoint
    model, tokenizer = load_model_and_tokenizer(
        section.start_from if checkpoint is None else checkpoint.model_folder
    )
    if checkpoint is None:
        if learns_conversations(section):
            adopt_chat_layout(tokenizer, section, context.reporter)
        resize_token_embeddings(model, tokenizer, context.reporter.say)
        align_special_tokens(model, tokenizer)
    return model, tokenizer


def _with_adapter(
    section: FinetuneSection, context: TrainingContext
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base as it is, with an adapter on it."""
    assert section.start_from is not None
    model, own = load_model_and_tokenizer(section.start_from)
    adapters = Adapters(model, section.start_from)
    _, folder = adapter_settings(section, context)
    tokenizer = _adapter_tokenizer(section, own, folder, context.reporter)
    resize_token_embeddings(model, tokenizer, context.reporter.say)
    added = tokenizer.get_vocab().keys() - own.get_vocab().keys() - {tokenizer.pad_token}
    attach_adapter(adapters, section, context, train_head=bool(added))
    return model, tokenizer


def _adapter_tokenizer(
    section: FinetuneSection, own: PreTrainedTokenizerBase, folder: Path | None, reporter: Reporter
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


def _job(
    section: FinetuneSection,
    context: TrainingContext,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
) -> TrainingJob:
    """The training that teaches these examples to a model."""
    base, run, reporter = section.start_from, context.run, context.reporter
    assert base is not None
    text = _text(section, tokenizer, run, reporter)
    data = plan_rows(section, tokenizer, model.config, examples, text, reporter)
    require_packing_support(model)
    section = section.replace(seq_len=data.seq_len, accumulation=data.accumulation)
    if data.carry_state:
        section = section.replace(batch_size=section.batch_size or 1, compile=False)
        if section.gradient_checkpointing:
            raise ConfigError(
                "gradient checkpointing does not go with conversations that are longer than a row: choose longer "
                "rows (--seq-len) or shorter conversations (--max-length)"
            )
    if not (section.steps or section.epochs or section.minutes or section.tokens):
        section = section.replace(epochs=_EPOCHS)
    model = model.to(context.device)  # type: ignore[arg-type]

    def validation(settings: ResolvedTrainSection, precision: Precision) -> Validation:
        validate = _Validation(run, reporter, tokenizer, data, text, settings, precision)
        validate.remember(model)
        return validate

    return TrainingJob(
        model=model,
        tokenizer=tokenizer,
        data=data,
        section=section,
        objective=carried_next_token if data.carry_state else next_token,
        validation=validation,
        base=base,
        continued=True,
        inputs={**data.record(), "model": str(find_model(base))},
        metrics=(LOSS, TOKEN_ACCURACY, BASE_BITS_PER_BYTE),
        forgetting=lambda: read_json(run / FORGETTING) if (run / FORGETTING).is_file() else None,
    )


def adopt_chat_layout(
    tokenizer: PreTrainedTokenizerBase, section: FinetuneSection, reporter: Reporter
) -> list[str]:
    """Give a tokenizer the chat layout that was asked for; its own stays where none was. Returns the tokens added."""
    known = known_chat_template(tokenizer)
    if section.template == "auto" and tokenizer.chat_template and known is None:
        require_template(tokenizer)
        added = require_pad_token(tokenizer)
    else:
        own = known.name if known else "default"
        added = prepare_for_chat(tokenizer, own if section.template == "auto" else section.template)
    if added:
        reporter.say(f"special tokens of the chat layout added: {' '.join(added)}")
    return added


def _text(
    section: FinetuneSection, tokenizer: PreTrainedTokenizerBase, run: Path, reporter: Reporter
) -> PreparedCorpus | None:
    """Text of the kind that the base was trained on: named, or that of the base's own run where it is there."""
    if section.text:
        prepared = prepare_corpus(plan_sources(section.text), tokenizer, run / "data")
        for line in prepared.notes():
            reporter.say(f"text of the base: {line}")
        return prepared
    assert section.start_from is not None
    found = base_text(section.start_from)
    if found is not None and _same_ids(found, tokenizer):
        reporter.say(f"what the base forgets is measured on the held-out text of {found}")
        return open_prepared(found)
    if section.text_share:
        raise ConfigError(
            "a share of pre-training text was asked for, and the base's own text is not beside it. "
            "Name text with --text FILES"
        )
    return None


def _same_ids(data: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """True where the corpora of a run were made with this tokenizer, or with one that it has only been added to."""
    own = data.parent / "tokenizer"
    made_with = load_tokenizer(own if own.is_dir() else find_model(data.parent))
    return made_with.get_vocab().items() <= tokenizer.get_vocab().items()


@dataclass
class _Validation:
    """Validation for the trainer: learnt tokens of held-out examples, the base's text, and answers to look at."""

    run: Path
    reporter: Reporter
    tokenizer: PreTrainedTokenizerBase
    data: FinetuneData
    base_text: PreparedCorpus | None
    settings: ResolvedTrainSection
    precision: Precision
    before: float | None = None

    def __post_init__(self) -> None:
        self.packed = self.data.packed_held_out()
        self.text = None if self.base_text is None else self.base_text.validation
        parts = 1 if self.text is None else 2
        self._tokens = self.settings.validation_rows * self.settings.seq_len // parts

    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        """Measure; `loss` is over learnt tokens alone, `base_bits_per_byte` that of the base's text."""
        settings = self.settings
        batch = max(1, settings.batch_size * settings.seq_len // self.packed.seq_len)
        rows = max(1, self._tokens // self.packed.seq_len)
        scores = score_assistant_tokens(
            model, self.packed, pad_id(self.tokenizer), batch, self.precision.dtype, rows
        )
        figures = {"loss": scores.loss, "token_accuracy": scores.token_accuracy}
        if self.text is not None:
            figures["base_bits_per_byte"] = self._text_bits(model)
            self._note_forgetting(figures["base_bits_per_byte"])
        self._show_answers(model)
        return figures

    def _note_forgetting(self, after: float) -> None:
        """Write down what is left of the base, and say it; with a remedy where much is lost."""
        assert self.before is not None
        write_json(self.run / FORGETTING, {"before": self.before, "after": after})
        lost = after > _MUCH_LOST * self.before and not self.data.section.text_share
        self.reporter.say(
            f"  held-out text of the base: {self.before:.4f} → {after:.4f} bits a byte"
            + ("; --text-share 0.2 keeps it" if lost else "")
        )

    def remember(self, model: PreTrainedModel) -> None:
        """Measure bits a byte of the base's text before the first step, once."""
        if self.text is None:
            return
        if (self.run / FORGETTING).is_file():
            self.before = float(read_json(self.run / FORGETTING)["before"])
            return
        self.before = self._text_bits(model)
        write_json(self.run / FORGETTING, {"before": self.before, "after": None})
        self.reporter.say(f"held-out text of the base, before: {self.before:.4f} bits a byte")

    def _text_bits(self, model: PreTrainedModel) -> float:
        assert self.text is not None
        limit = traits_of(model.config).context_limit or _TEXT_SEQ_LEN
        seq_len = max(2, min(_TEXT_SEQ_LEN, limit, self.text.tokens))
        batch = max(1, self.settings.batch_size * self.settings.seq_len // seq_len)
        return evaluate_corpus(
            model,
            self.text,
            self.tokenizer,
            seq_len=seq_len,
            batch=batch,
            max_rows=max(1, min(_MOST_TEXT_ROWS, self._tokens // seq_len)),
            dtype=self.precision.dtype,
        ).bits_per_byte

    def _show_answers(self, model: PreTrainedModel) -> None:
        """Answer a few held-out questions, show them and write them down."""
        answers = answer_samples(model, self.tokenizer, self.data.examples.questions)
        rows: list[dict[str, Any]] = []
        for answer in answers:
            self.reporter.say(f"  {_short(answer.asked)} → {_short(answer.given)}")
            rows.append({"asked": answer.asked, "given": answer.given, "expected": answer.expected})
        if rows:
            self._write_samples(rows)

    def _write_samples(self, rows: list[dict[str, Any]]) -> None:
        """Add a line for this validation; those of validations that a resumed run measures again are replaced."""
        path, metrics = self.run / SAMPLES, read_metrics(self.run / METRICS_FILE)
        measured = [record["step"] for record in metrics if record["kind"] == "validation"]
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        lines = [*lines[: len(measured)], json.dumps({"answers": rows}, ensure_ascii=False)]
        write_text(path, "\n".join(lines) + "\n")


def _short(text: str, length: int = 90) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
