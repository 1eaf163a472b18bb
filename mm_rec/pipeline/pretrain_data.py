"""The text of a run: corpora or streams by source, what is held out of them, and their tokenizer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mm_rec.data.batches import corpus_batches, mixture_batches
from mm_rec.data.corpus import Corpus, write_corpus
from mm_rec.data.mixture import (
    MAX_EPOCHS,
    Mixture,
    check_mixture,
    describe_mixture,
    group_sources,
    plan_mixture,
)
from mm_rec.data.prepare import PreparedCorpus, is_prepared, open_prepared, plan_groups, prepare_corpus
from mm_rec.data.sections import DEFAULT_SOURCE, DataSection
from mm_rec.data.streaming import StreamSource, first_held_out, plan_streams, stream_batches
from mm_rec.errors import ConfigError, VocabularyTooLarge
from mm_rec.models.loading import find_model
from mm_rec.models.presets import ModelSize, preset
from mm_rec.pipeline.contamination import check_contamination
from mm_rec.pipeline.resolve import budget_warning
from mm_rec.pipeline.sections import PretrainSection
from mm_rec.tokenizers.loading import fingerprint, load_tokenizer
from mm_rec.tokenizers.training import TokenizerConfig, train_tokenizer
from mm_rec.training.interfaces import Batches, Reporter
from mm_rec.training.section import ResolvedTrainSection, tokens_per_step


@dataclass(frozen=True, slots=True)
class PretrainData:
    """The data of a pre-training run: by name, corpora on the disk, or else streams; and the tokenizer of both."""

    data: DataSection
    tokenizer: PreTrainedTokenizerBase
    corpora: dict[str, PreparedCorpus]
    streams: dict[str, StreamSource]
    say: Callable[[str], None]

    @property
    def tokens(self) -> dict[str, int] | None:
        """Training tokens of each source; None for streams, whose length nobody knows."""
        if self.streams:
            return None
        return {name: prepared.train.tokens for name, prepared in self.corpora.items()}

    def mixture(self, section: ResolvedTrainSection) -> Mixture:
        """Which source each row of the run comes from; with one source, always that one."""
        sizes = {name: prepared.train.text_bytes for name, prepared in self.corpora.items()}
        sizes = sizes or {name: stream.size() for name, stream in self.streams.items()}
        if not all(sizes.values()):  # a server did not say
            sizes = dict.fromkeys(sizes, 1)
        data, rows = self.data, section.batch_size * section.accumulation
        return plan_mixture(sizes, data.sources, data.temperature, data.phases, section.steps, rows)

    def batches(self, section: ResolvedTrainSection) -> Batches:
        """The run's batches from its first step on."""
        sizes = (section.seq_len, section.batch_size, section.accumulation, section.seed)
        if self.streams:
            rows = self.data.shuffle_rows
            return stream_batches(self.streams, self.mixture(section), self.tokenizer, *sizes, rows, self.say)
        corpora = {name: prepared.train for name, prepared in self.corpora.items()}
        if len(corpora) == 1:
            return corpus_batches(next(iter(corpora.values())), *sizes)
        return mixture_batches(corpora, self.mixture(section), *sizes)

    def held_out(self, section: ResolvedTrainSection, folder: Path) -> dict[str, Corpus]:
        """The validation corpus of each source, or the one of separate files; those of streams are made in `folder`."""
        if self.streams:
            return self._stream_held_out(section, folder)
        corpora = {name: prepared.validation for name, prepared in self.corpora.items()}
        different = {corpus.fingerprint: corpus for corpus in corpora.values()}
        # Separate files are the same for all sources, and are measured once.
        return {DEFAULT_SOURCE: next(iter(different.values()))} if len(different) == 1 else corpora

    def _stream_held_out(self, section: ResolvedTrainSection, folder: Path) -> dict[str, Corpus]:
        tokens = section.validation_rows * section.seq_len // len(self.streams)
        texts = {name: first_held_out(one, self.tokenizer, tokens) for name, one in self.streams.items()}
        if self.data.validation:
            texts = {DEFAULT_SOURCE: next(iter(self.streams.values())).texts("validation")}
        corpora = {}
        for name, documents in texts.items():
            place = folder / name / "validation"
            finished = (place / "corpus.json").is_file()
            corpora[name] = Corpus.open(place) if finished else write_corpus(documents, self.tokenizer, place)
            corpora[name].require_tokenizer(fingerprint(self.tokenizer))
        return corpora

    def longest(self, section: ResolvedTrainSection) -> int:
        """Tokens of the longest document that the model reads: a row."""
        return section.seq_len

    def describe(self, section: ResolvedTrainSection, size: ModelSize) -> list[str]:
        """Describe the share of each of several sources, a line each, with warnings."""
        lines = self._shares(section)
        tokens = section.steps * tokens_per_step(section)
        epochs = 0.0 if self.tokens is None else tokens / sum(self.tokens.values())
        if epochs > MAX_EPOCHS:
            lines.append(
                f"warning: the text is read {epochs:,.0f} times. Beyond about {MAX_EPOCHS} times, repeated text "
                "teaches much less than new text (Muennighoff et al. 2023). Fewer steps do as well, or more text better"
            )
        warning = budget_warning(size, tokens)
        return lines if warning is None else [*lines, warning]

    def _shares(self, section: ResolvedTrainSection) -> list[str]:
        names = [*self.corpora, *self.streams]
        if len(names) < 2:
            return []
        rows = section.steps * section.batch_size * section.accumulation
        return describe_mixture(self.mixture(section), rows, section.seq_len, self.tokens)

    def steps_per_epoch(self, section: ResolvedTrainSection) -> float | None:
        """Steps in which the text is read once; None for a stream."""
        return None if self.tokens is None else sum(self.tokens.values()) / tokens_per_step(section)

    def preview(self) -> dict[str, str]:
        """Nothing: all of the text is learnt."""
        return {}

    def record(self) -> dict[str, Any]:
        """Return the provenance of the text, for the run's lineage."""
        records = {
            name: {
                "train_corpus": prepared.train.fingerprint,
                "validation_corpus": prepared.validation.fingerprint,
                "split": prepared.record,
            }
            for name, prepared in self.corpora.items()
        }
        if len(records) == 1:
            return next(iter(records.values()))
        return {"sources": records or {name: stream.record() for name, stream in self.streams.items()}}

    def card_lines(self, section: ResolvedTrainSection) -> list[str]:
        """The text in a few lines, for the model card."""
        lines = [_stream_line(name, stream) for name, stream in self.streams.items()]
        lines += [_corpus_line(prepared) for prepared in self.corpora.values()]
        return [*lines, *self._shares(section)]


def _files(files: list[str]) -> str:
    shown = ", ".join(f"`{Path(name).name}`" for name in files[:5])
    return shown + (f" and {len(files) - 5} more" if len(files) > 5 else "")


def _corpus_line(prepared: PreparedCorpus) -> str:
    train, record = prepared.train, prepared.record
    return (
        f"text: {_files(record['files'])}; {train.text_bytes / 1e6:,.1f} MB, {train.tokens:,} tokens to train on,\n"
        f"  {prepared.validation.tokens:,} held out ({record['rule']})"
    )


def _stream_line(name: str, stream: StreamSource) -> str:
    return (
        f"text: {_files([str(file) for file in stream.files])}; {stream.size() / 1e6:,.1f} MB on the disk, "
        f"read as a stream,\n  held out: documents whose hash is below {stream.threshold:g}"
    )


def read_text(section: PretrainSection, run: Path, reporter: Reporter) -> PretrainData:
    """The text of a run and its tokenizer: made, or found finished; raises UserError for what cannot be used."""
    data = section.data
    check_mixture(data.sources, data.temperature, data.phases)
    for name in data.benchmarks:
        if not Path(name).exists():
            raise ConfigError(f"data.benchmarks: there is no file or folder {name!r}. Check the name")
    if not data.sources and data.prepared is None:
        raise ConfigError("no text to train on: name files or folders, for example `mmrec pretrain books/`")
    text = _streamed(section, run, reporter) if data.streaming else _on_disk(section, run, reporter)
    for prepared in text.corpora.values():
        for corpus in (prepared.train, prepared.validation):
            corpus.require_tokenizer(fingerprint(text.tokenizer))
        for line in prepared.notes():
            reporter.say(line)
    if text.tokens is not None:
        trains = [prepared.train for prepared in text.corpora.values()]
        tokens = sum(text.tokens.values())
        reporter.say(
            f"{tokens:,} tokens to train on, "
            f"{sum(prepared.validation.tokens for prepared in text.corpora.values()):,} to validate, "
            f"{sum(train.text_bytes for train in trains) / tokens:.2f} bytes a token"
        )
    return text


def _on_disk(section: PretrainSection, run: Path, reporter: Reporter) -> PretrainData:
    """Corpora that are prepared already, and those that are made for this run."""
    data, source = section.data, tokenizer_source(section)
    groups = group_sources(data.sources) if data.prepared is None else {DEFAULT_SOURCE: [data.prepared]}
    ready = {
        name: Path(paths[0])
        for name, paths in groups.items()
        if data.prepared is not None or (len(paths) == 1 and is_prepared(paths[0]))
    }
    if ready and source is None:
        raise ConfigError("data that is prepared needs its tokenizer too: give --tokenizer DIR")
    made = {name: run / "data" / name if len(groups) > 1 else run / "data" for name in groups.keys() - ready}
    folders = {name: ready.get(name) or made[name] for name in groups}
    finished = all(is_prepared(folder) for folder in made.values())
    if finished and (source is not None or (run / "tokenizer").is_dir()):
        tokenizer = load_tokenizer(source or run / "tokenizer")
        return PretrainData(
            data, tokenizer, {name: open_prepared(place) for name, place in folders.items()}, {}, reporter.say
        )
    plans = plan_groups(
        {name: paths for name, paths in groups.items() if name in made},
        text_field=data.text_field,
        documents=data.documents,
        validation_fraction=data.validation_fraction,
        validation_sources=data.validation,
    )
    for name, plan in plans.items():
        for line in plan.describe():
            reporter.say(line if len(groups) == 1 else f"{name}: {line}")
    check_contamination(data, plans, reporter.say)

    def texts() -> Iterator[str]:
        return itertools.chain.from_iterable(plan.texts("train") for plan in plans.values())

    tokenizer = _tokenizer(section, source, texts, run, reporter)
    corpora = {
        name: prepare_corpus(plans[name], tokenizer, place, parse_specials=data.parse_specials)
        if name in made
        else open_prepared(place)
        for name, place in folders.items()
    }
    return PretrainData(data, tokenizer, corpora, {}, reporter.say)


def _streamed(section: PretrainSection, run: Path, reporter: Reporter) -> PretrainData:
    """Streams of the sources; a tokenizer that is not given is trained on the beginning of their text."""
    data = section.data
    if data.prepared is not None:
        raise ConfigError(
            "data.prepared is on the disk already and cannot be streamed: leave out one of the two"
        )
    if data.parse_specials:
        raise ConfigError(
            "data.parse_specials: a stream reads special tokens as text. Leave out one of the two"
        )
    if data.benchmarks:
        raise ConfigError(
            "a stream is not read before training, so it cannot be held against data.benchmarks: "
            "take them out first (mmrec data clean … --evaluation FILE)"
        )
    if section.epochs is not None or not (section.steps or section.minutes or section.tokens):
        raise ConfigError(
            "how long a stream is, and so an epoch, is not known before it was read: "
            "say how far to train with --steps, --minutes or --tokens"
        )
    streams = plan_streams(
        group_sources(data.sources),
        text_field=data.text_field,
        documents=data.documents,
        validation_fraction=data.validation_fraction,
        validation_sources=data.validation,
    )
    for name, stream in streams.items():
        rule = "separate files" if data.validation else f"documents whose hash is below {stream.threshold:g}"
        reporter.say(
            f"{name}: {len(stream.files)} files, {stream.size() / 1e6:,.1f} MB, read as a stream; held out: {rule}"
        )
    limit = TokenizerConfig().sample_bytes // len(streams)

    def texts() -> Iterator[str]:
        return itertools.chain.from_iterable(
            _beginning(stream.texts("train"), limit) for stream in streams.values()
        )

    tokenizer = _tokenizer(section, tokenizer_source(section), texts, run, reporter)
    return PretrainData(data, tokenizer, {}, streams, reporter.say)


def _beginning(texts: Iterator[str], size: int) -> Iterator[str]:
    """The first texts, of about `size` bytes."""
    taken = 0
    for text in texts:
        if taken >= size:
            return
        taken += len(text.encode())
        yield text


def tokenizer_source(section: PretrainSection) -> Path | None:
    """Return the folder of an existing tokenizer: named, or that of the model to continue."""
    if section.tokenizer.path is not None:
        return Path(section.tokenizer.path)
    return None if section.model.start_from is None else find_model(section.model.start_from)


def _tokenizer(
    section: PretrainSection,
    source: Path | None,
    texts: Callable[[], Iterator[str]],
    run: Path,
    reporter: Reporter,
) -> PreTrainedTokenizerBase:
    """The tokenizer that is given, or the run's own: there, or trained on the texts.

    A vocabulary that was not asked for shrinks to fit the text.
    """
    out = run / "tokenizer"
    if source is None and not out.is_dir():
        config = TokenizerConfig(
            vocab_size=section.tokenizer.vocab_size or preset(section.model.size).vocab_size,
            threads=section.threads,
            seed=section.seed or 0,
        )
        try:
            report = train_tokenizer(texts, config, out)
        except VocabularyTooLarge as error:
            if section.tokenizer.vocab_size is not None:
                raise
            # The preset's size was nobody's wish: the largest that the text can fill does as well.
            report = train_tokenizer(texts, config.replace(vocab_size=error.largest), out)
        reporter.say(
            f"tokenizer: {report.vocab_size:,} pieces; {report.proof.lines:,} lines encoded as SentencePiece does, "
            "0 differ, all decoded exactly"
        )
    return load_tokenizer(source or out)


def prepared_data(data: DataSection, folder: Path) -> DataSection:
    """The same data from the shards that a run made of it; a stream is read from its sources again."""
    if data.streaming:
        return data
    if len(group_sources(data.sources)) < 2:
        return DataSection(prepared=str(folder))
    sources = {
        source.name: source.replace(path=str(folder / source.name))
        for source in data.sources
        if is_prepared(folder / source.name)
    }
    kept = [source for source in data.sources if source.name not in sources]
    return data.replace(sources=[*sources.values(), *kept])
