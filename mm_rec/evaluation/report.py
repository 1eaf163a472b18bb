"""The report of an evaluation: figures, samples and a judgement in plain words, as JSON and Markdown."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from mm_rec.evaluation.perplexity import TextScores
from mm_rec.evaluation.samples import GeneratedSample
from mm_rec.models.presets import measure
from mm_rec.models.traits import traits_of
from mm_rec.runs.files import write_json, write_text

JSON_NAME, MARKDOWN_NAME = "evaluation.json", "evaluation.md"

# Bits per byte up to which a judgement holds. Marks on the way, on prose with a vocabulary of its own: choosing tokens
# blindly 3 to 4, knowing only how often each occurs 2.2 to 2.8, two million parameters after ten minutes on books about
# 1.7, the best large models 0.6 to 0.8.
QUALITY = (
    (0.8, "very good", "It predicts this text as the best large models do, or has seen it in training."),
    (1.1, "good", "It writes fluent sentences and mostly keeps to the subject."),
    (1.5, "fair", "Its sentences are mostly well formed; what they say does not always hold together."),
    (2.0, "basic", "It has learnt words and short phrases; whole sentences often do not hold together."),
    (2.6, "weak", "It has learnt which words are common, hardly any grammar."),
    (math.inf, "untrained", "It has learnt next to nothing, or the text is not in its language."),
)
REPEATED_4GRAMS = 0.3
FEW_WORDS = 0.3
SHORT_TEXT_BYTES = 2000
CONTEXT_GAIN = 0.01


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Sizes of a model: `state_bytes` of one conversation in float32, `cache_bytes_per_token` by which it grows."""

    path: str
    family: str
    parameters: int
    vocab_size: int
    hidden_size: int
    layers: int
    context_limit: int | None
    state_bytes: int
    cache_bytes_per_token: int


@dataclass(frozen=True, slots=True)
class TextResult:
    """The scores of one text at one context length (tokens)."""

    name: str
    context: int
    scores: TextScores


@dataclass(frozen=True, slots=True)
class QualityAssessment:
    """One word for the quality, and sentences that say why."""

    quality: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """The results of an evaluation."""

    model: ModelInfo
    texts: tuple[TextResult, ...]
    samples: tuple[GeneratedSample, ...]
    judgement: QualityAssessment

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write `evaluation.json` and `evaluation.md` into the folder; returns their paths."""
        json_path, markdown_path = folder / JSON_NAME, folder / MARKDOWN_NAME
        write_json(json_path, _finite(dataclasses.asdict(self)))
        write_text(markdown_path, render_markdown(self))
        return json_path, markdown_path


def make_report(
    model: PreTrainedModel, path: Path | str, texts: Sequence[TextResult], samples: Sequence[GeneratedSample]
) -> EvaluationReport:
    """Build a report from results, the model's sizes and an assessment of its quality."""
    return EvaluationReport(
        model_info(model, path), tuple(texts), tuple(samples), assess_quality(texts, samples)
    )


def model_info(model: PreTrainedModel, path: Path | str) -> ModelInfo:
    """Return the sizes of the model at `path`."""
    config, size = model.config, measure(model.config)
    return ModelInfo(
        path=str(path),
        family=config.model_type,
        parameters=size.parameters,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        layers=config.num_hidden_layers,
        context_limit=traits_of(config).context_limit,
        state_bytes=size.state_bytes,
        cache_bytes_per_token=size.cache_bytes_per_token,
    )


def assess_quality(texts: Sequence[TextResult], samples: Sequence[GeneratedSample]) -> QualityAssessment:
    """Assess quality by the bits per byte of all texts at the longest context, and by repetition in the samples.

    The thresholds are QUALITY and the constants below it.
    """
    quality, reasons = "not measured", []
    if texts:
        longest = max(text.context for text in texts)
        chosen = [text.scores for text in texts if text.context == longest]
        size = sum(scores.bytes for scores in chosen)
        bits = sum(scores.bits_per_byte * scores.bytes for scores in chosen) / size
        quality, sentence = next((name, why) for limit, name, why in QUALITY if bits <= limit)
        reasons.append(f"{bits:.3f} bits per byte at a context of {longest:,} tokens. {sentence}")
        if size < SHORT_TEXT_BYTES:
            reasons.append(f"The text has {size:,} bytes: too few to be sure of. Give a longer one.")
        reasons += _context_reasons(texts)
    return QualityAssessment(quality, (*reasons, *_sample_reasons(samples)))


def _context_reasons(texts: Sequence[TextResult]) -> list[str]:
    """Compare the loss at the shortest and the longest context, for texts that were scored at several."""
    reasons = []
    for name in dict.fromkeys(text.name for text in texts):
        same = sorted((text for text in texts if text.name == name), key=lambda text: text.context)
        short, long = same[0], same[-1]
        if short.context == long.context:
            continue
        gain = short.scores.loss - long.scores.loss
        verdict = "It uses" if gain > CONTEXT_GAIN else "It gains nothing from"
        reasons.append(
            f"{verdict} the longer context on {name}: {short.scores.loss:.3f} nats a token at {short.context:,} "
            f"tokens, {long.scores.loss:.3f} at {long.context:,}."
        )
    return reasons


def _sample_reasons(samples: Sequence[GeneratedSample]) -> list[str]:
    if not samples:
        return []
    reasons = []
    ended = sum(sample.ended for sample in samples)
    circling = sum(sample.measures.repeated_4grams > REPEATED_4GRAMS for sample in samples)
    poor = sum(sample.measures.words >= 20 and sample.measures.distinct_1 < FEW_WORDS for sample in samples)
    if circling:
        reasons.append(
            f"{circling} of {len(samples)} samples go in circles (over {REPEATED_4GRAMS:.0%} of their 4-grams came "
            "before). Try a higher temperature, or a repetition penalty of 1.1."
        )
    if poor:
        reasons.append(f"{poor} of {len(samples)} samples use few different words (under {FEW_WORDS:.0%}).")
    if not circling and not poor:
        reasons.append("The samples do not repeat themselves.")
    reasons.append(f"{ended} of {len(samples)} samples ended by themselves.")
    return reasons


def render_markdown(report: EvaluationReport) -> str:
    """Return the report as Markdown."""
    facts = report.model
    fixed = [f"{facts.state_bytes:,} bytes"] * bool(facts.state_bytes)
    growing = [f"{facts.cache_bytes_per_token:,} bytes a token"] * bool(facts.cache_bytes_per_token)
    memory = " and ".join(fixed + growing) + ("" if growing else " whatever the length")
    lines = [
        "# Evaluation",
        "",
        f"**Quality: {report.judgement.quality}.** " + " ".join(report.judgement.reasons),
        "",
        "## Model",
        "",
        f"- `{facts.path}`: {facts.family}, {facts.parameters:,} parameters",
        f"- vocabulary {facts.vocab_size:,}, width {facts.hidden_size:,}, {facts.layers} layers",
        f"- memory of one conversation: {memory}",
        f"- longest context: {'no limit' if facts.context_limit is None else f'{facts.context_limit:,} tokens'}",
    ]
    if report.texts:
        lines += ["", "## Texts", "", *_text_table(report.texts)]
    if report.samples:
        lines += ["", "## Samples"]
        for sample in report.samples:
            lines += ["", *_sample_lines(sample)]
    return "\n".join(lines) + "\n"


def _text_table(texts: Sequence[TextResult]) -> list[str]:
    titles = "text | context | documents | tokens | bytes | loss | perplexity | bits per byte | right tokens"
    rows = [f"| {titles} |", "|---" + "|---:" * titles.count("|") + "|"]
    for text in texts:
        scores = text.scores
        rows.append(
            f"| {text.name.replace('|', chr(92) + '|')} | {text.context:,} | {scores.documents:,} | {scores.tokens:,} "
            f"| {scores.bytes:,} | {scores.loss:.4f} | {scores.perplexity:,.2f} | {scores.bits_per_byte:.4f} "
            f"| {scores.token_accuracy:.1%} |"
        )
    return [*rows, "", "Loss is in nats a token; bits per byte compare models whatever their tokenizers."]


def _sample_lines(sample: GeneratedSample) -> list[str]:
    measures = sample.measures
    quoted = f"**{sample.prompt}**{sample.text}".splitlines() or [""]
    end = "ended by itself" if sample.ended else "cut at the limit"
    return [
        *(f"> {line}  " for line in quoted),
        "",
        f"{sample.tokens} tokens, {end}; distinct words {measures.distinct_1:.0%}, pairs {measures.distinct_2:.0%}, "
        f"triples {measures.distinct_3:.0%}; repeated 4-grams {measures.repeated_4grams:.0%}; longest repeat "
        f"{measures.longest_repeat} words",
    ]


def _finite(value: Any) -> Any:
    """Return the value with None for each float that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
