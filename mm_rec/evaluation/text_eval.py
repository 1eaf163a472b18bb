"""Evaluate a model on texts: scores at each context length and samples, in one report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mm_rec.evaluation.perplexity import evaluate_text
from mm_rec.evaluation.report import EvaluationReport, TextResult, make_report
from mm_rec.evaluation.samples import DEFAULT_PROMPTS, generate_samples
from mm_rec.inference.engine import Engine
from mm_rec.inference.sampler import SamplingParams
from mm_rec.sources.documents import find_files, read_documents
from mm_rec.sources.sections import DocumentsRule
from mm_rec.tokenizers.loading import count_special_tokens, describe_special_tokens

DEFAULT_CONTEXT = 512  # tokens

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TextSource:
    """A named text, whose documents are read anew for each context."""

    name: str
    documents: Iterable[str]


@dataclass(frozen=True, slots=True)
class _FileDocuments:
    name: str
    text_field: str
    rule: DocumentsRule | None
    max_mb: float | None

    def __iter__(self) -> Iterator[str]:
        used = 0
        for document in read_documents([self.name], text_field=self.text_field, documents=self.rule):
            if self.max_mb is not None and used >= self.max_mb * 1e6:
                return
            used += len(document.text.encode())
            yield document.text


def text_sources(
    names: Sequence[str],
    text_field: str = "text",
    documents: DocumentsRule | None = None,
    max_mb: float | None = None,
) -> list[TextSource]:
    """Texts of files, folders or globs, of each its first `max_mb`; raises DataError where a name leads to nothing."""
    for name in names:
        find_files([name])
    return [TextSource(name, _FileDocuments(name, text_field, documents, max_mb)) for name in names]


def evaluate_texts(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    model_name: Path | str,
    sources: Sequence[TextSource],
    sampling: SamplingParams,
    *,
    contexts: Sequence[int] = (),
    prompts: Sequence[str] = (),
    say: Say = lambda line: None,
    progress: Say = lambda doing: None,
) -> EvaluationReport:
    """Score each text at each context (default: 512 tokens), and continue the prompts (default: four of ours).

    `say` is told what is odd about a text, `progress` what is being done.
    """
    contexts = sorted(set(contexts)) or [min(DEFAULT_CONTEXT, engine.context_limit or DEFAULT_CONTEXT)]
    results = []
    for source in sources:
        for line in describe_special_tokens(count_special_tokens(tokenizer, source.documents)):
            say(f"{source.name}: {line}")
        for context in contexts:
            progress(f"reading {source.name} at a context of {context:,} tokens")
            scores = evaluate_text(engine.model, tokenizer, source.documents, context)
            results.append(TextResult(source.name, context, scores))
    progress("writing samples")
    samples = list(generate_samples(engine, tokenizer, prompts or DEFAULT_PROMPTS, sampling))
    return make_report(engine.model, model_name, results, samples)
