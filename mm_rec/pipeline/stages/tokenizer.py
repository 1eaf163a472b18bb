"""The kind `tokenizer`: text → a tokenizer that several models share. What `mmrec tokenizer train` does."""

from __future__ import annotations

from collections.abc import Collection

from mm_rec.config import Section, setting
from mm_rec.errors import ConfigError
from mm_rec.pipeline.kinds import Artifacts, StageContext, StageKind, StageResult
from mm_rec.runs.metrics import Outcome
from mm_rec.sources.documents import find_files, read_documents
from mm_rec.sources.sections import DocumentsRule


class TokenizerTrainSection(Section):
    """The text and the size of a tokenizer."""

    sources: list[str] = setting(list, "Files, folders, globs or URLs of text.", option="")
    text_field: str = setting("text", "Field of .jsonl rows.")
    documents: DocumentsRule | None = setting(None, "What a document is in .txt: file, blank-line or line.")
    vocab_size: int = setting(32_000, "Pieces in the vocabulary, special tokens included.", ge=1)
    sample_bytes: int = setting(100_000_000, "Train on at most so many bytes of the text.", ge=1)
    threads: int | None = setting(None, "Threads to use.", ge=1, le=1024)


def _connect(section: TokenizerTrainSection, made: Artifacts) -> TokenizerTrainSection:
    corpus = made.latest("corpus")
    return section if section.sources or corpus is None else section.replace(sources=[corpus])


def _require(section: TokenizerTrainSection, made: Collection[str]) -> None:
    if section.sources:
        find_files(section.sources)
    elif "corpus" not in made:
        raise ConfigError("no text to train a tokenizer on: name files or folders in sources")


def _run(kind: StageKind, section: TokenizerTrainSection, context: StageContext) -> StageResult:
    from mm_rec.tokenizers.training import TokenizerConfig, train_tokenizer  # it brings transformers

    _require(section, ())
    config = TokenizerConfig(
        vocab_size=section.vocab_size,
        sample_bytes=section.sample_bytes,
        threads=section.threads,
        seed=context.seed,
    )
    out = context.run / "tokenizer"
    report = train_tokenizer(
        lambda: (
            document.text
            for document in read_documents(
                section.sources, text_field=section.text_field, documents=section.documents
            )
        ),
        config,
        out,
    )
    context.keep(section, {})
    context.reporter.say(f"{out}: {report.vocab_size:,} pieces")
    return StageResult(Outcome.FINISHED, made={"tokenizer": out})


KIND = StageKind(
    "tokenizer", TokenizerTrainSection, makes=("tokenizer",), run=_run, connect=_connect, require=_require
)
