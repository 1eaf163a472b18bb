"""Examples of fine-tuning: conversations, rows by a prompt format, and raw text in chunks, alone or together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mm_rec.data.chunking import ChunkedText, chunk_documents, read_text_files
from mm_rec.data.conversations.issues import Issue
from mm_rec.data.conversations.rendering import TokenizedExample
from mm_rec.data.mixture import group_sources
from mm_rec.data.prompt_formats import load_prompt_format, render_rows
from mm_rec.data.split import plan_end_split, plan_split
from mm_rec.errors import ConfigError
from mm_rec.evaluation.finetune_eval import prompt_of_example
from mm_rec.models.traits import traits_of
from mm_rec.pipeline.conversation_examples import read_conversation_examples, train_val_split
from mm_rec.pipeline.finetune_data import Examples, longest_allowed
from mm_rec.pipeline.sections import FinetuneSection
from mm_rec.sources.documents import Document
from mm_rec.training.interfaces import Reporter

_KINDS = ("chat", "rows", "text")
_PARAGRAPH = "\n\n"


def learns_conversations(section: FinetuneSection) -> bool:
    """True where a chat template is needed."""
    return any(_kind(section, source.path, source.format) == "chat" for source in section.data)


def learns_rows(section: FinetuneSection) -> bool:
    """True where anything but raw text is learnt."""
    return any(not holds_text(source.path) for source in section.data)


def read_examples(
    section: FinetuneSection, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, reporter: Reporter
) -> Examples:
    """Read every source by its kind; raises DataError where something in it cannot be learnt."""
    if not section.data:
        raise ConfigError(
            "nothing to learn: name files, for example `mmrec sft chats.jsonl --from RUN` (.txt is raw text; "
            ".json, .jsonl and .csv are conversations, or rows of a --prompt-format)"
        )
    group_sources(section.data)  # one name has one weight
    _require_known_validation(section)
    found = [_read(kind, section, tokenizer, config, reporter) for kind in _KINDS]
    parts = [one for one in found if one is not None]
    train: dict[str, list[TokenizedExample]] = {}
    for one in parts:
        for name, rendered in one.train.items():
            train.setdefault(name, []).extend(rendered)
    return Examples(
        train=train,
        held_out=[rendered for one in parts for rendered in one.held_out],
        questions=[question for one in parts for question in one.questions][: section.samples],
        described=[line for one in parts for line in one.described],
    )


def _kind(section: FinetuneSection, path: str, format_name: str | None = None) -> str:
    """Return what a path holds: text, rows of a prompt format, or chat, which may be named by its format."""
    if holds_text(path):
        return "text"
    return "chat" if section.prompt_format is None or format_name is not None else "rows"


def _require_known_validation(section: FinetuneSection) -> None:
    """Raise ConfigError for a file to validate on of which nothing like it is learnt: it would be passed over."""
    kinds = {_kind(section, source.path, source.format) for source in section.data}
    for path in section.validation:
        if _kind(section, path) not in kinds:
            raise ConfigError(
                f"--validation {path}: nothing of its kind is learnt here. Give others, or leave it out"
            )


def holds_text(path: str) -> bool:
    """True where a path is raw text by its name: .txt, perhaps compressed, or a folder with such files."""
    plain = path.removesuffix(".gz").removesuffix(".zst")
    return plain.endswith(".txt") or (Path(path).is_dir() and any(Path(path).glob("*.txt*")))


def _read(
    kind: str,
    section: FinetuneSection,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    reporter: Reporter,
) -> Examples | None:
    """The sources of one kind; None where there are none."""
    data = [source for source in section.data if _kind(section, source.path, source.format) == kind]
    if not data:
        return None
    held = [path for path in section.validation if _kind(section, path) == kind]
    own = section.replace(data=data, validation=held)
    if kind == "chat":
        return read_conversation_examples(own, tokenizer, config, reporter)
    reader = _Rows(own, tokenizer, config) if kind == "rows" else _Text(own, tokenizer, config)
    examples = reader.examples()
    for line in reader.notes:
        reporter.say(line)
    return examples


class _Rows:
    """Rows of JSON, written by a prompt format."""

    def __init__(
        self, section: FinetuneSection, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig
    ) -> None:
        assert section.prompt_format is not None
        self.section, self.tokenizer = section, tokenizer
        self.format = load_prompt_format(section.prompt_format)
        self.limit = longest_allowed(section, config)
        self.notes: list[str] = []

    def examples(self) -> Examples:
        """All of them, split."""
        train: dict[str, list[tuple[None, TokenizedExample]]] = {}
        for source in self.section.data:
            train.setdefault(source.name, []).extend(self._rendered(source.path))
        held = [pair for path in self.section.validation for pair in self._rendered(path)]
        kept, held = train_val_split(train, held, self.section)
        held_out = [one for _, one in held]
        return Examples(
            train={name: [one for _, one in pairs] for name, pairs in kept.items()},
            held_out=held_out,
            questions=[prompt_of_example(self.tokenizer, one) for one in held_out[: self.section.samples]],
            described=[f"prompt format: {self.section.prompt_format}"],
        )

    def _rendered(self, path: str) -> list[tuple[None, TokenizedExample]]:
        left_out: list[Issue] | None = [] if self.section.fix else None
        rows = render_rows(path, self.format, self.tokenizer, max_length=self.limit, left_out=left_out)
        self.notes += [f"left out: {issue.location}: {issue.message}" for issue in left_out or []]
        return [(None, one) for one in rows]


class _Text:
    """Raw text, split into sides at its hard cuts, or at its paragraphs where it has none, and then sliced."""

    def __init__(
        self, section: FinetuneSection, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig
    ) -> None:
        self.section, self.tokenizer = section, tokenizer
        limit = traits_of(config).context_limit
        self.chunking = section.text_slices
        if limit is not None and self.chunking.chunk_length > limit:
            raise ConfigError(
                f"chunk_length {self.chunking.chunk_length:,} is over the model's context of {limit:,} tokens"
            )
        self.notes: list[str] = []

    def examples(self) -> Examples:
        """All blocks of training and validation; no part of a text is in both."""
        train: dict[str, list[Document]] = {}
        for source in self.section.data:
            train.setdefault(source.name, []).extend(read_text_files([source.path]))
        held = list(read_text_files(self.section.validation)) if self.section.validation else []
        if held:
            known = set(_parts(held, self.chunking.hard_cut))
            train = {
                name: _without(documents, known, self.chunking.hard_cut) for name, documents in train.items()
            }
        else:
            train, held = self._held_out(train)
        sliced = {
            name: chunk_documents(documents, self.tokenizer, self.chunking)
            for name, documents in train.items()
        }
        held_out = chunk_documents(held, self.tokenizer, self.chunking).blocks
        for name, slices in sliced.items():
            self.notes += [describe_chunks(name, slices), *slices.notes()]
        return Examples(
            train={name: slices.blocks for name, slices in sliced.items()},
            held_out=held_out,
            questions=[prompt_of_example(self.tokenizer, one) for one in held_out[: self.section.samples]],
            described=[f"raw text in blocks of {self.chunking.chunk_length} tokens at most"],
        )

    def _held_out(self, train: dict[str, list[Document]]) -> tuple[dict[str, list[Document]], list[Document]]:
        """Both sides: parts between the hard cuts, or paragraphs where those are few, or lines, or the text's end."""
        fraction = self.section.validation_fraction
        everything = [document for documents in train.values() for document in documents]
        cuts = [_PARAGRAPH, "\n"]
        if len(_parts(everything, self.chunking.hard_cut)) >= 1 / fraction:  # or a part would be far too much
            cuts.insert(0, self.chunking.hard_cut)
        cut = next((cut for cut in cuts if len(set(_parts(everything, cut))) > 1), "")
        parts = _parts(everything, cut)
        split = plan_split(parts, fraction) if len(set(parts)) > 1 else plan_end_split(parts, fraction)
        what = "text, its end, because it is one line" if split.rule == "end" else "parts"
        what = {_PARAGRAPH: "paragraphs", "\n": "lines"}.get(cut, what)
        share = split.validation_bytes / split.bytes
        self.notes.append(
            f"held out: {split.validation_documents:,} of {split.documents:,} {what}, {share:.1%} of the text"
        )

        def side(document: Document, number: int) -> Document:
            pieces = (split.split_text(part)[number] for part in _parts([document], cut))
            return replace(document, text=cut.join(piece for piece in pieces if piece is not None))

        kept = {name: [side(document, 0) for document in documents] for name, documents in train.items()}
        return kept, [side(document, 1) for document in everything]


def _parts(documents: Sequence[Document], cut: str) -> list[str]:
    """Return the parts between the cuts of some texts."""
    texts = (
        text for document in documents for text in (document.text.split(cut) if cut else [document.text])
    )
    return [text for text in texts if text.strip()]


def _without(documents: Sequence[Document], parts: set[str], cut: str) -> list[Document]:
    """The texts without some of their parts."""
    kept = [[text for text in _parts([document], cut) if text not in parts] for document in documents]
    return [replace(document, text=cut.join(texts)) for document, texts in zip(documents, kept, strict=True)]


def describe_chunks(name: str, slices: ChunkedText) -> str:
    """Blocks, their lengths, and the chunk length that would suit them, in a line."""
    lengths, chunk = slices.lengths, slices.suggested_chunk_length
    fits = f"; a chunk of {chunk:,} would hold every part" if slices.longest_part <= chunk else ""
    return (
        f"{name}: {len(lengths):,} blocks of {slices.parts:,} parts ({slices.overlapping:,} overlapping), "
        f"{slices.tokens:,} tokens; the longest have {lengths[0]:,} and {lengths[min(1, len(lengths) - 1)]:,}{fits}"
    )
