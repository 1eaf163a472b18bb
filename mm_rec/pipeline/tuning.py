"""What every fine-tuning has in common, of all weights or of an adapter: what is measured, shown and not forgotten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.data.corpus import Corpus
from mm_rec.data.prepare import PreparedCorpus, open_prepared, plan_sources, prepare_corpus
from mm_rec.errors import ConfigError
from mm_rec.evaluation.finetune_eval import answer_samples, score_assistant_tokens
from mm_rec.evaluation.perplexity import evaluate_corpus
from mm_rec.models.forward import require_packing_support
from mm_rec.models.loading import find_model
from mm_rec.pipeline.examples import Examples, RunExamples, base_text, pad_id, plan_rows
from mm_rec.pipeline.recipe import SftSection
from mm_rec.pipeline.stage import Stage
from mm_rec.runs.files import read_json, write_json, write_text
from mm_rec.runs.metrics_log import read_metrics
from mm_rec.runtime import Precision
from mm_rec.tokenizers.chat_template import (
    known_chat_template,
    prepare_for_chat,
    require_pad_token,
    require_template,
)
from mm_rec.tokenizers.loading import load_tokenizer
from mm_rec.training.config import TrainingConfig
from mm_rec.training.objectives import carried_next_token, next_token
from mm_rec.training.trainer import Reporter, Validation

FORGETTING = "forgetting.json"
SAMPLES = "samples.jsonl"
_EPOCHS = 3.0
_MOST_TEXT_ROWS = 64  # of the base's held-out text, measured at each validation
_TEXT_SEQ_LEN = 512
_MUCH_LOST = 1.1


def tuning_stage(
    section: SftSection,
    run: Path,
    reporter: Reporter,
    device: torch.device,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
) -> Stage:
    """The stage that teaches these examples to a model."""
    base = section.start_from
    assert base is not None
    text = _text(section, tokenizer, run, reporter)
    data = plan_rows(section, tokenizer, model.config, examples, text, reporter)
    require_packing_support(model)
    section = section.changed(seq_len=data.seq_len, accumulation=data.accumulation)
    if data.carry_state:
        section = section.changed(batch_size=section.batch_size or 1, compile=False)
        if section.gradient_checkpointing:
            raise ConfigError(
                "gradient checkpointing does not go with conversations that are longer than a row: choose longer "
                "rows (--seq-len) or shorter conversations (--max-length)"
            )
    if not (section.steps or section.epochs or section.minutes or section.tokens):
        section = section.changed(epochs=_EPOCHS)
    model = model.to(device)  # type: ignore[arg-type]

    def validation(settings: TrainingConfig, precision: Precision) -> Validation:
        return _Validation(run, reporter, tokenizer, data, text, settings, precision, model)

    return Stage(
        model=model,
        tokenizer=tokenizer,
        data=data,
        section=section,
        objective=carried_next_token if data.carry_state else next_token,
        validation=validation,
        base=base,
        continued=True,
        inputs={**data.record(), "model": str(find_model(base))},
        forgetting=lambda: read_json(run / FORGETTING) if (run / FORGETTING).is_file() else None,
    )


def adopt_chat_layout(
    tokenizer: PreTrainedTokenizerBase, section: SftSection, reporter: Reporter
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
    section: SftSection, tokenizer: PreTrainedTokenizerBase, run: Path, reporter: Reporter
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
    """Whether the corpora of a run were made with this tokenizer, or with one that it has only been added to."""
    own = data.parent / "tokenizer"
    made_with = load_tokenizer(own if own.is_dir() else find_model(data.parent))
    return made_with.get_vocab().items() <= tokenizer.get_vocab().items()


class _Validation:
    """Validation for the loop: learnt tokens of held-out conversations, the base's text, and answers to look at."""

    def __init__(
        self,
        run: Path,
        reporter: Reporter,
        tokenizer: PreTrainedTokenizerBase,
        data: RunExamples,
        text: PreparedCorpus | None,
        settings: TrainingConfig,
        precision: Precision,
        model: PreTrainedModel,
    ) -> None:
        self.run, self.reporter, self.tokenizer, self.data = run, reporter, tokenizer, data
        self.settings, self.precision = settings, precision
        self.packed = data.packed_held_out()
        self.text: Corpus | None = None if text is None else text.validation
        self._tokens = settings.validation_rows * settings.seq_len // (2 if self.text is not None else 1)
        self.before = self._remember(model)

    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        """Measure; `loss` is over learnt tokens alone, `base_bits_per_byte` that of the base's text."""
        settings = self.settings
        batch = max(1, settings.micro_batch * settings.seq_len // self.packed.seq_len)
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

    def _remember(self, model: PreTrainedModel) -> float | None:
        """Bits a byte of the base's text before the first step, measured once."""
        if self.text is None:
            return None
        if (self.run / FORGETTING).is_file():
            return float(read_json(self.run / FORGETTING)["before"])
        before = self._text_bits(model)
        write_json(self.run / FORGETTING, {"before": before, "after": None})
        self.reporter.say(f"held-out text of the base, before: {before:.4f} bits a byte")
        return before

    def _text_bits(self, model: PreTrainedModel) -> float:
        assert self.text is not None
        limit = getattr(model.config, "max_position_embeddings", None) or _TEXT_SEQ_LEN
        seq_len = max(2, min(_TEXT_SEQ_LEN, limit, self.text.tokens))
        batch = max(1, self.settings.micro_batch * self.settings.seq_len // seq_len)
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
        path, metrics = self.run / SAMPLES, read_metrics(self.run / "metrics.jsonl")
        measured = [record["step"] for record in metrics if record["kind"] == "validation"]
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        lines = [*lines[: len(measured)], json.dumps({"answers": rows}, ensure_ascii=False)]
        write_text(path, "\n".join(lines) + "\n")


def _short(text: str, length: int = 90) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
