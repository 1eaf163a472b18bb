"""Counts and samples of what cleaning did: kept for each shard and added up in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self, TypeVar

from mm_rec.cleaning.document import Dropped, Reason

EARLIER_PARAGRAPH = "paragraph stands in an earlier document"  # the reason of a cut
_Why = TypeVar("_Why", bound=str)
_SAMPLES = 5
_KEPT_SAMPLES = 2  # of each source
_SAMPLE_LENGTH = 300  # characters


@dataclass(slots=True)
class Amount:
    """Some documents, or pieces of them, and their size."""

    count: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        """Count one more, of `size` bytes of UTF-8."""
        self.count += 1
        self.bytes += size


@dataclass(slots=True)
class RemovalStats(Amount):
    """The removals for one reason, with the first few samples: location, measured value, beginning of the text."""

    samples: list[dict[str, str]] = field(default_factory=list)

    def add_sample(self, size: int, location: str, detail: str, text: str) -> None:
        """Count one more and keep it as a sample while there are few."""
        self.add(size)
        if len(self.samples) < _SAMPLES:
            self.samples.append({"place": location, "detail": detail, "text": _beginning(text)})


@dataclass(slots=True)
class SourceStats:
    """The documents read from one source, and those kept."""

    read: Amount = field(default_factory=Amount)
    kept: Amount = field(default_factory=Amount)
    words: int = 0
    tokens: int = 0  # where there is a tokenizer to count them
    samples: list[dict[str, str]] = field(default_factory=list)  # of kept documents

    def add(self, other: SourceStats) -> None:
        """Add another source's numbers."""
        _sum(self.read, other.read)
        _sum(self.kept, other.kept)
        self.words += other.words
        self.tokens += other.tokens


@dataclass(slots=True)
class CleaningStats:
    """The numbers of a shard, or of all: by source, whole documents dropped, and pieces cut out of kept ones."""

    sources: dict[str, SourceStats] = field(default_factory=dict)
    dropped: dict[Reason, RemovalStats] = field(default_factory=dict)
    cut: dict[str, RemovalStats] = field(default_factory=dict)
    languages: dict[str, Amount] = field(default_factory=dict)

    def add(self, other: CleaningStats) -> None:
        """Add a later shard's numbers; samples are the first that there were."""
        for name, source_stats in other.sources.items():
            self.sources.setdefault(name, SourceStats()).add(source_stats)
        _add_removals(self.dropped, other.dropped)
        _add_removals(self.cut, other.cut)
        for code, amount in other.languages.items():
            _sum(self.languages.setdefault(code, Amount()), amount)

    def record_kept(self, source: str, location: str, before: str, text: str, tokens: int) -> None:
        """A kept document was written, perhaps without some of its paragraphs."""
        source_stats = self.sources[source]
        source_stats.words += len(text.split())
        source_stats.tokens += tokens
        if len(source_stats.samples) < _KEPT_SAMPLES:
            source_stats.samples.append({"place": location, "text": _beginning(text)})
        if text != before:
            size = len(before.encode()) - len(text.encode())
            source_stats.kept.bytes -= size
            self.cut.setdefault(EARLIER_PARAGRAPH, RemovalStats()).add_sample(size, location, "", before)

    def record_dropped(self, source: str, location: str, text: str, dropped: Dropped) -> None:
        """A kept document was left out after all."""
        size = len(text.encode())
        self.sources[source].kept.count -= 1
        self.sources[source].kept.bytes -= size
        removals = self.dropped.setdefault(dropped.reason, RemovalStats())
        removals.add_sample(size, location, dropped.measured, text)

    def total(self) -> SourceStats:
        """All sources together."""
        total = SourceStats()
        for source_stats in self.sources.values():
            total.add(source_stats)
        return total

    def markup_bytes(self) -> int:
        """Bytes that went without a reason of their own: markup, white space, what repairs and masks shortened."""
        total, removed = self.total(), [*self.dropped.values(), *self.cut.values()]
        return total.read.bytes - total.kept.bytes - sum(removal.bytes for removal in removed)

    def record(self) -> dict[str, Any]:
        """The numbers as plain values."""
        return asdict(self)

    @classmethod
    def restore(cls, values: dict[str, Any]) -> Self:
        """Return the statistics that `record` gave as plain values."""
        return cls(
            sources={
                name: SourceStats(Amount(**one["read"]), Amount(**one["kept"]), one["words"], one["tokens"])
                for name, one in values["sources"].items()
            },
            dropped={
                Reason(reason): RemovalStats(**removal) for reason, removal in values["dropped"].items()
            },
            cut={reason: RemovalStats(**removal) for reason, removal in values["cut"].items()},
            languages={code: Amount(**amount) for code, amount in values["languages"].items()},
        )


def merge_stats(parts: Iterable[CleaningStats]) -> CleaningStats:
    """Add up statistics, in order."""
    total = CleaningStats()
    for stats in parts:
        total.add(stats)
    return total


def _beginning(text: str) -> str:
    return text if len(text) <= _SAMPLE_LENGTH else text[:_SAMPLE_LENGTH] + "…"


def _add_removals(own: dict[_Why, RemovalStats], other: Mapping[_Why, RemovalStats]) -> None:
    for reason, removal in other.items():
        total = own.setdefault(reason, RemovalStats())
        _sum(total, removal)
        total.samples += removal.samples[: _SAMPLES - len(total.samples)]


def _sum(own: Amount, other: Amount) -> None:
    own.count += other.count
    own.bytes += other.bytes
