"""The report of an evaluation for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mm_rec.evaluation.report import EvaluationReport, TextResult
from mm_rec.evaluation.samples import GeneratedSample


def render_report(report: EvaluationReport) -> Group:
    """Return scores, samples and assessment as a renderable for rich's `Console.print`."""
    facts, judgement = report.model, report.judgement
    parts: list[RenderableType] = [
        Text(
            f"{facts.path}: {facts.family}, {facts.parameters:,} parameters, vocabulary {facts.vocab_size:,}"
        )
    ]
    if report.texts:
        parts.append(_table(report.texts))
    for sample in report.samples:
        parts += [Text(""), *_sample(sample)]
    parts += [Text(""), Text(f"Quality: {judgement.quality}", style="bold")]
    parts += [Text(f"- {reason}") for reason in judgement.reasons]
    return Group(*parts)


def _table(texts: tuple[TextResult, ...]) -> Table:
    table = Table()
    table.add_column("text", overflow="fold")
    for title in ("context", "tokens", "loss", "perplexity", "bits\nper byte", "right\ntokens"):
        table.add_column(title, justify="right")
    for text in texts:
        scores = text.scores
        table.add_row(
            Text(text.name),
            f"{text.context:,}",
            f"{scores.tokens:,}",
            f"{scores.loss:.4f}",
            f"{scores.perplexity:,.2f}",
            f"{scores.bits_per_byte:.4f}",
            f"{scores.token_accuracy:.1%}",
        )
    return table


def _sample(sample: GeneratedSample) -> tuple[Text, Text]:
    measures = sample.measures
    note = (
        f"{sample.tokens} tokens, {'ended by itself' if sample.ended else 'cut at the limit'}; distinct words "
        f"{measures.distinct_1:.0%}, repeated 4-grams {measures.repeated_4grams:.0%}"
    )
    return Text.assemble((sample.prompt, "bold"), sample.text), Text(note, style="dim")
