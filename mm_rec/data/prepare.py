"""Make a train and a validation corpus of sources: one path for `mmrec data tokenize` and pre-training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mm_rec.data.corpus import SHARD_BYTES, Corpus, write_corpus
from mm_rec.data.split import LARGE_VALIDATION_SHARE, TrainValSplit, document_hash, plan_end_split, plan_split
from mm_rec.errors import DataError
from mm_rec.runs.files import read_json, remove, write_json
from mm_rec.sources.documents import ReadCounts, choose_documents_rule, find_files, read_documents
from mm_rec.sources.locations import SourceFile
from mm_rec.sources.sections import DocumentsRule
from mm_rec.tokenizers.loading import describe_special_tokens

SplitName = Literal["train", "validation"]
_MINIMUM = 0.01
_RECORD = "split.json"
_RULES = {"file": "a whole file", "blank-line": "a block between blank lines", "line": "a line"}
_NAMES = {"file": "file", "blank-line": "block", "line": "line"}


def read_split(
    split_name: SplitName,
    files: Sequence[SourceFile],
    validation_files: Sequence[SourceFile],
    text_field: str,
    documents: DocumentsRule,
    split_document: Callable[[str], tuple[str | None, str | None]],
) -> Iterator[str]:
    """Stream one split: what `split_document` gives (training, validation) of each, or separate files."""
    if split_name == "validation" and validation_files:
        yield from (item.text for item in read_documents(validation_files, text_field, documents))
        return
    for item in read_documents(files, text_field, documents):
        part = split_document(item.text)[split_name == "validation"]
        if part is not None:
            yield part


@dataclass(frozen=True, kw_only=True, slots=True)
class SourcePlan:
    """Sources that were read once from end to end, and which of their documents are held out.

    `too_coarse` is the usual rule of .txt where that gives one document and `documents`, a finer one, gives more.
    `held_out` are the hashes of documents that are held out elsewhere, in separate validation files or by another
    source; a training document of the same text is left out of training, so that validation never measures what was
    learnt by heart (`left_out` counts them).
    """

    files: list[SourceFile]
    validation_files: list[SourceFile]
    text_field: str
    documents: DocumentsRule
    too_coarse: DocumentsRule | None
    split: TrainValSplit
    blank: int
    held_out: frozenset[float]
    left_out: int

    def texts(self, split_name: SplitName) -> Iterator[str]:
        """Stream the documents of one side, always in the same order."""
        return read_split(
            split_name,
            self.files,
            self.validation_files,
            self.text_field,
            self.documents,
            self._split_document,
        )

    def _split_document(self, text: str) -> tuple[str | None, str | None]:
        return (None, None) if document_hash(text) in self.held_out else self.split.split_text(text)

    def text_bytes(self, split_name: SplitName) -> int:
        """Bytes of UTF-8 text on one side."""
        held = self.split.validation_bytes
        return held if split_name == "validation" else self.split.bytes - held

    def describe(self) -> list[str]:
        """The choices that were made and what is unusual about them, a line each."""
        split = self.split
        how = {
            "hash": f"documents whose hash is below {split.threshold:g}",
            "lowest-hash": f"the documents of lowest hash (below {split.threshold:.6g})",
            "end": "the end of the text, because it is one document",
            "files": f"{len(self.validation_files)} separate files",
        }
        share = split.validation_bytes / split.bytes
        why = f", because there is one {_NAMES[self.too_coarse]}" if self.too_coarse else ""
        lines = [
            f"{len(self.files)} files, {split.bytes / 1e6:,.1f} MB; a document is a row of .jsonl, "
            f"{_RULES[self.documents]} of .txt (--documents {self.documents}{why})",
            f"held out for validation: {how[split.rule]}: {split.validation_documents:,} of "
            f"{split.documents:,} documents, {share:.2%} of the text",
        ]
        if share > LARGE_VALIDATION_SHARE and split.rule != "files":
            lines.append(
                f"warning: {share:.0%} of the text is held out, because documents are few and large. "
                "Smaller documents (--documents line or blank-line) split more evenly"
            )
        if self.blank:
            lines.append(f"{self.blank:,} documents of white space alone were skipped")
        if self.left_out:
            lines.append(f"{self.left_out:,} documents are also held out elsewhere and were left out")
        return lines

    def record(self) -> dict[str, Any]:
        """The plan as plain values, for `split.json` and the run's records."""
        return {
            **self.split.record(),
            "documents_rule": self.documents,
            "text_field": self.text_field,
            "blank_documents_skipped": self.blank,
            "training_documents_left_out": self.left_out,
            "files": [str(file) for file in self.files],
            "validation_files": [str(file) for file in self.validation_files],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedCorpus:
    """Both corpora and the record of how they came about (`SourcePlan.record`)."""

    train: Corpus
    validation: Corpus
    record: dict[str, Any]

    def notes(self) -> list[str]:
        """Describe what is unusual about the text, a line each."""
        parsed = bool(self.train.header.settings.get("parse_specials"))
        return describe_special_tokens(self.train.specials + self.validation.specials, parsed)


def plan_sources(
    sources: Sequence[Path | str],
    *,
    text_field: str = "text",
    documents: DocumentsRule | None = None,
    validation_fraction: float = 0.01,
    validation_sources: Sequence[Path | str] = (),
) -> SourcePlan:
    """Read all sources once, so that bad input is found now, and plan what is held out."""
    files = find_files(sources)
    rule, too_coarse, enough = choose_documents_rule(files, text_field, documents, bool(validation_sources))
    counts = ReadCounts()
    texts = (item.text for item in read_documents(files, text_field, rule, counts))
    validation_files = find_files(validation_sources) if validation_sources else []
    held_out: frozenset[float] = frozenset()
    left_out = 0
    if validation_files:
        held = (item.text for item in read_documents(validation_files, text_field, rule, counts))
        split, held_out, left_out = _hold_out_files(texts, held, files)
    elif enough:
        split = plan_split(texts, validation_fraction, min(_MINIMUM, validation_fraction))
    else:
        split = plan_end_split(texts, validation_fraction)
    return SourcePlan(
        files=files,
        validation_files=validation_files,
        text_field=text_field,
        documents=rule,
        too_coarse=too_coarse,
        split=split,
        blank=counts.blank,
        held_out=held_out,
        left_out=left_out,
    )


def plan_groups(groups: Mapping[str, Sequence[Path | str]], **options: Any) -> dict[str, SourcePlan]:
    """Plan each of several sources by itself (`options` as of `plan_sources`), so that no source trains on a document
    that another one holds out.
    """
    plans = {name: plan_sources(paths, **options) for name, paths in groups.items()}
    return {name: _exclude_held_out(plan, list(plans.values())) for name, plan in plans.items()}


def _exclude_held_out(plan: SourcePlan, plans: list[SourcePlan]) -> SourcePlan:
    """Leave out of a source's training what the sources with a higher threshold hold out."""
    others = [other for other in plans if other.split.threshold > plan.split.threshold or plan.split.kept]
    keys = {document_hash(text) for other in others for text in other.texts("validation")}
    held_out = frozenset(key for key in keys if not plan.split.holds_out(key))
    documents = read_documents(plan.files, plan.text_field, plan.documents) if held_out else ()
    left_out = sum(document_hash(document.text) in held_out for document in documents)
    if not left_out:
        return plan
    return dataclasses.replace(plan, held_out=plan.held_out | held_out, left_out=plan.left_out + left_out)


def is_prepared(path: Path | str) -> bool:
    """Return True if a folder was written by `prepare_corpus`."""
    return (Path(path) / _RECORD).is_file()


def prepare_corpus(
    plan: SourcePlan,
    tokenizer: Any,
    out: Path,
    *,
    threads: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    parse_specials: bool = False,
    progress: Callable[[int], None] | None = None,
) -> PreparedCorpus:
    """Write `out/validation`, `out/train` and, last, `out/split.json`.

    Shards that are there and made of the same text are kept, so a killed call continues where it stopped.
    """
    remove(out / _RECORD)
    corpora = {}
    split_names: tuple[SplitName, ...] = ("validation", "train")
    for split_name in split_names:
        corpora[split_name] = write_corpus(
            plan.texts(split_name),
            tokenizer,
            out / split_name,
            shard_bytes=shard_bytes,
            threads=threads,
            parse_specials=parse_specials,
            expected_bytes=plan.text_bytes(split_name),
            progress=progress,
        )
    write_json(out / _RECORD, plan.record())
    return PreparedCorpus(train=corpora["train"], validation=corpora["validation"], record=plan.record())


def open_prepared(out: Path) -> PreparedCorpus:
    """Open what `prepare_corpus` wrote; raises DataError where it is unfinished or damaged."""
    if not is_prepared(out):
        raise DataError(f"there is no finished data here (no {_RECORD}). Make it: mmrec data tokenize", out)
    train, validation = Corpus.open(out / "train"), Corpus.open(out / "validation")
    return PreparedCorpus(train=train, validation=validation, record=read_json(out / _RECORD))


def _hold_out_files(
    texts: Iterator[str], held: Iterator[str], files: list[SourceFile]
) -> tuple[TrainValSplit, frozenset[float], int]:
    """The split that holds out separate files, their hashes, and how many training documents repeat them."""
    hashes: set[float] = set()
    validation_documents = validation_bytes = documents = size = left_out = 0
    for text in held:
        hashes.add(document_hash(text))
        validation_documents += 1
        validation_bytes += len(text.encode("utf-8"))
    for text in texts:
        if document_hash(text) in hashes:
            left_out += 1
        else:
            documents += 1
            size += len(text.encode("utf-8"))
    if not validation_documents:
        raise DataError(
            "the validation files hold no document but white space. Name other --validation FILES"
        )
    if not documents:
        raise DataError(
            f"no document is left to train on: {left_out} of the sources stand in the validation files too. "
            "Give more text",
            str(files[0]),
        )
    split = TrainValSplit(
        threshold=0.0,
        documents=documents + validation_documents,
        bytes=size + validation_bytes,
        validation_documents=validation_documents,
        validation_bytes=validation_bytes,
        rule="files",
    )
    return split, frozenset(hashes), left_out
