"""The kind `clean`: raw text → one clean file, with its report. What `mmrec data clean` does."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from mm_rec.config import Section, setting
from mm_rec.errors import ConfigError
from mm_rec.pipeline.kinds import StageContext, StageKind, StageResult
from mm_rec.runs.metrics import Outcome
from mm_rec.sources.documents import find_files

if TYPE_CHECKING:
    from mm_rec.cleaning.corpus import CorpusConfig

CLEAN = "clean.jsonl"


class CleanSection(Section):
    """Settings of a cleaning stage."""

    sources: list[str] = setting(list, "Files, folders, globs or URLs of text.", option="")
    corpus: dict[str, Any] = setting(
        dict, "Settings of the cleaning, as `mmrec data clean --set` takes them.", option=""
    )
    processes: int | None = setting(None, "Processes to clean with.", ge=1)


def _config(section: CleanSection) -> CorpusConfig:
    from mm_rec.cleaning.corpus import CorpusConfig  # it brings numpy

    return CorpusConfig.read(section.corpus, where="corpus")


def _require(section: CleanSection, made: Collection[str]) -> None:
    if not section.sources:
        raise ConfigError("no text to clean: name files or folders in sources")
    find_files(section.sources)
    _config(section)


def _run(kind: StageKind, section: CleanSection, context: StageContext) -> StageResult:
    from mm_rec.cleaning.corpus import clean_corpus
    from mm_rec.cleaning.report import write_report

    _require(section, ())
    out = context.run / CLEAN
    corpus = clean_corpus(section.sources, out, _config(section), processes=section.processes)
    page = write_report(corpus)
    context.keep(section, {})
    context.reporter.say(f"{out}: what was removed and why: {page}")
    return StageResult(Outcome.FINISHED, made={"corpus": out, "report": page})


KIND = StageKind("clean", CleanSection, makes=("corpus", "report"), run=_run, require=_require)
