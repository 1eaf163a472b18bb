"""Make a clean corpus of sources: clean in shards, leave duplicates out, write one file and its report.

OUT                              the documents that stay, in the order of the sources
OUT.report/report.json           all numbers; report.html: the same to read; README.md: the data card
OUT.report/clusters.jsonl        which documents were left out for which
OUT.report/fingerprints.npz      what a later corpus is deduplicated against
OUT.report/dropped.jsonl.zst     every document that was left out, with its reason (on request)
OUT.work/                        shards while it runs; a killed call goes on there
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from numpy.typing import NDArray

from mm_rec.cleaning.contamination import N_GRAM_WORDS, EvaluationIndex, evaluation_items
from mm_rec.cleaning.dedup import (
    REPEATED_PARAGRAPHS,
    DedupConfig,
    Duplicate,
    Fingerprints,
    find_duplicates,
    remove_paragraphs,
    repeated_paragraphs,
)
from mm_rec.cleaning.document import Dropped
from mm_rec.cleaning.language import LANGUAGE
from mm_rec.cleaning.shards import CleanedShard, ShardCleaner, clean_shards, default_processes
from mm_rec.cleaning.stats import CleaningStats, merge_stats
from mm_rec.cleaning.steps import CleaningConfig, resolve_cleaning
from mm_rec.config import Section
from mm_rec.errors import DataError
from mm_rec.runs.files import remove
from mm_rec.sources.documents import default_documents_rule, find_files, read_documents
from mm_rec.sources.locations import SourceFile, compression, file_size
from mm_rec.sources.problems import Problem
from mm_rec.sources.sections import DocumentsRule
from mm_rec.sources.writers import document_writer, require_document_path, row_writer

_DROPPED = "dropped.jsonl.zst"
_LEFT = 200  # characters; what is left of a document after its repeated paragraphs went must be worth reading


class CorpusConfig(Section):
    """All settings of a clean corpus."""

    cleaning: CleaningConfig = CleaningConfig()
    dedup: DedupConfig = DedupConfig()
    earlier: list[str] = []  # report folders of corpora that this one must not repeat
    evaluation: list[str] = []  # files whose items must not stand in the corpus
    evaluation_words: int = pydantic.Field(default=N_GRAM_WORDS, ge=1)
    text_field: str = "text"
    documents: DocumentsRule | None = None


@dataclass(slots=True)
class CleaningProgress:
    """Progress callbacks: a stage begins (name, bytes), bytes are done, a problem was met."""

    stage: Callable[[str, int], None] = lambda name, size: None
    advance: Callable[[int], None] = lambda size: None
    problem: Callable[[Problem], None] = lambda problem: None


@dataclass(slots=True)
class CleanCorpus:
    """A finished corpus: its sources, statistics, problems and duplicates."""

    out: Path
    config: CorpusConfig
    files: list[SourceFile]
    rule: DocumentsRule
    stats: CleaningStats
    problems: list[Problem]
    duplicates: list[Duplicate]
    index: EvaluationIndex | None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def report(self) -> Path:
        """The folder of its report."""
        return report_folder(self.out)


def report_folder(out: Path) -> Path:
    """The folder of a corpus's report."""
    return out.with_name(out.name + ".report")


def clean_corpus(
    sources: Sequence[Path | str],
    out: Path,
    config: CorpusConfig,
    *,
    processes: int | None = None,
    keep_dropped: bool = False,
    count_tokens: Callable[[str], int] | None = None,
    progress: CleaningProgress | None = None,
) -> CleanCorpus:
    """Write the clean corpus `out`, its clusters and fingerprints; what can be checked is checked before.

    `count_tokens` gives the tokens of a text, where they are to be counted too. The files do not depend on `processes`
    (default: one a core), nor on whether an earlier call was killed.
    Raises DataError where nothing is left.
    """
    progress = progress or CleaningProgress()
    require_document_path(out)
    files = find_files(sources)
    rule = default_documents_rule(files, config.documents)
    earlier = [Fingerprints.load(Path(folder) / "fingerprints.npz") for folder in config.earlier]
    index = _evaluation_index(config)
    corpus = CleanCorpus(out, config, files, rule, CleaningStats(), [], [], index)

    def note(problem: Problem) -> None:
        corpus.problems.append(problem)
        progress.problem(problem)

    work = out.with_name(out.name + ".work")
    with _timed(corpus, "cleaning"):
        progress.stage("cleaning", _text_bytes(files))
        documents = read_documents(files, config.text_field, rule, on_problem=note)
        cleaner = ShardCleaner(work, resolve_cleaning(config.cleaning, config.dedup, index))
        shards = clean_shards(documents, cleaner, processes or default_processes(), progress.advance)
        corpus.stats = merge_stats(shard.stats for shard in shards)
        if not corpus.stats.total().kept.count:
            remove(work)
            raise _nothing_left(corpus)
    with _timed(corpus, "looking for duplicates"):
        progress.stage("looking for duplicates", 0)
        fingerprints = Fingerprints.join([*earlier, *(shard.fingerprints() for shard in shards)])
        prior = sum(len(part.documents) for part in earlier)
        corpus.duplicates = find_duplicates(fingerprints, config.dedup, prior)
        kept = np.ones(len(fingerprints.documents), dtype=np.bool_)
        kept[[duplicate.document for duplicate in corpus.duplicates]] = False
        if not kept[prior:].any():
            raise DataError("every document stands in an earlier corpus, so nothing is left to write", out)
        repeated = repeated_paragraphs(fingerprints, kept, prior)
    with _timed(corpus, "writing"):
        progress.stage("writing", corpus.stats.total().kept.bytes)
        writer = _CorpusWriter(corpus, fingerprints, prior, repeated, count_tokens or (lambda text: 0))
        writer.write(shards, keep_dropped, progress)
    remove(work)
    return corpus


def _text_bytes(files: Sequence[SourceFile]) -> int:
    """Estimate the bytes of text in all files; 0 where one is compressed or its size is not known."""
    sizes = [None if compression(file) else file_size(file) for file in files]
    return 0 if None in sizes else sum(size or 0 for size in sizes)


def _evaluation_index(config: CorpusConfig) -> EvaluationIndex | None:
    if not config.evaluation:
        return None
    items = evaluation_items(config.evaluation)
    return EvaluationIndex.build(items, config.cleaning.language, config.evaluation_words)


def _nothing_left(corpus: CleanCorpus) -> DataError:
    """The error for a corpus of which every document was dropped: the reasons that took most, and what to try."""
    stats = corpus.stats
    most = sorted(stats.dropped.items(), key=lambda entry: -entry[1].count)[:3]
    reasons = (
        ", ".join(f"{reason} ({removal.count:,})" for reason, removal in most) or "nothing could be read"
    )
    hint = "`mmrec data inspect` shows what the files hold"
    if most and most[0][0] == LANGUAGE and stats.languages:
        found = max(stats.languages, key=lambda code: stats.languages[code].count)
        hint = f"most of it is in {found!r}, and --language is {corpus.config.cleaning.language!r}"
    elif most:
        hint += ", and --set cleaning.rules.… changes a limit"
    return DataError(
        f"no document is left of {stats.total().read.count:,}. Most frequent reasons: {reasons}; {hint}",
        str(corpus.files[0]) if corpus.files else None,
    )


@contextlib.contextmanager
def _timed(corpus: CleanCorpus, stage: str) -> Iterator[None]:
    """Note how long a stage takes, in seconds."""
    start = time.perf_counter()
    yield
    corpus.seconds[stage] = round(time.perf_counter() - start, 3)


class _CorpusWriter:
    """The last pass: the shards' documents in order, without duplicates and repeated paragraphs."""

    def __init__(
        self,
        corpus: CleanCorpus,
        fingerprints: Fingerprints,
        prior: int,
        repeated: NDArray[np.bool_],
        count_tokens: Callable[[str], int],
    ) -> None:
        self.corpus, self.fingerprints, self.prior, self.repeated = corpus, fingerprints, prior, repeated
        self.count_tokens = count_tokens
        self.duplicates = {duplicate.document: duplicate for duplicate in corpus.duplicates}
        self.kept = np.arange(len(fingerprints.documents)) >= prior
        involved = {duplicate.kept for duplicate in corpus.duplicates} | self.duplicates.keys()
        self.locations = {
            number: "an earlier corpus" if number < prior else "" for number in sorted(involved)
        }

    def write(self, shards: Sequence[CleanedShard], keep_dropped: bool, progress: CleaningProgress) -> None:
        """Write the corpus, its clusters and fingerprints, and on request what was dropped."""
        report = self.corpus.report
        report.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as files:
            write = files.enter_context(document_writer(self.corpus.out))
            drop = files.enter_context(row_writer(report / _DROPPED)) if keep_dropped else lambda row: None
            number = self.prior
            for shard in shards:
                for row in shard.documents("dropped"):
                    drop(row)
                for row in shard.documents():
                    self._document(number, row, write, drop)
                    progress.advance(len(row["text"].encode()))
                    number += 1
        self.fingerprints.select(self.kept).save(report / "fingerprints.npz")
        with row_writer(report / "clusters.jsonl") as write_row:
            for cluster in self._clusters():
                write_row(cluster)

    def _document(
        self, number: int, row: dict[str, Any], write: Callable[[str], None], drop: Callable[[Any], None]
    ) -> None:
        """Write one document, or leave it out, and count it."""
        location = f"{row['path']}:{row['line']}"
        if number in self.locations:
            self.locations[number] = location
        text, removal = self._decide(number, row["text"])
        stats = self.corpus.stats
        if removal is None:
            write(text)
            stats.record_kept(row["path"], location, row["text"], text, self.count_tokens(text))
        else:
            self.kept[number] = False
            drop({**row, **removal.record()})
            stats.record_dropped(row["path"], location, row["text"], removal)

    def _decide(self, number: int, text: str) -> tuple[str, Dropped | None]:
        """Return the text to write, and the reason where the document is left out."""
        duplicate = self.duplicates.get(number)
        if duplicate is not None:
            return text, duplicate.dropped
        again = self.repeated[self.fingerprints.borders[number] : self.fingerprints.borders[number + 1]]
        if not again.any():
            return text, None
        left = remove_paragraphs(text, again)
        if len(left) < _LEFT:
            return text, Dropped(REPEATED_PARAGRAPHS, f"{len(left)} characters would be left")
        return left, None

    def _clusters(self) -> Iterator[dict[str, Any]]:
        """Yield each kept document with its duplicates."""
        clusters: dict[int, list[Duplicate]] = {}
        for duplicate in self.corpus.duplicates:
            clusters.setdefault(duplicate.kept, []).append(duplicate)
        for kept in sorted(clusters):
            yield {
                "kept": self.locations[kept],
                "left_out": [
                    {
                        "place": self.locations[item.document],
                        "kind": item.kind,
                        "similarity": round(item.similarity, 3),
                    }
                    for item in clusters[kept]
                ],
            }
