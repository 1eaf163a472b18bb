"""Settings of training data: sources and how they are mixed, how raw text is cut, which conversations are learnt."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from mm_rec.config import Section, setting
from mm_rec.sources.sections import DocumentsRule
from mm_rec.text.languages import get_language

DEFAULT_SOURCE = "text"  # the source of all paths that are given as plain strings
TrainOn = Literal["all", "last"]
TooLong = Literal["refuse", "turns"]
LongSentences = Literal["split", "trim", "drop"]
_NAME = re.compile(r"\w[\w.-]*")
TEXT_PANEL = "Raw text (.txt)"
DATA_PANEL = "Text"


class DataSource(Section):
    """A path of a source, with its name and weight; a plain string belongs to the source "text", of weight 1."""

    path: str
    name: str
    weight: float = Field(default=1.0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"path": value, "name": DEFAULT_SOURCE}
        if isinstance(value, dict) and value.get("name") is None and isinstance(value.get("path"), str):
            return {**value, "name": _name_of(value["path"])}
        return value

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"the source {self.path!r} needs a name of letters and digits; give name: …")
        return self

    @model_serializer(mode="wrap")
    def _short(self, whole: SerializerFunctionWrapHandler) -> Any:
        return self.path if (self.name, self.weight) == (DEFAULT_SOURCE, 1.0) else whole(self)


def _name_of(path: str) -> str:
    """The last part of a path without suffixes, or the one before it where that is a pattern."""
    parts = [part for part in PurePosixPath(path).parts if not re.search(r"[*?\[]", part)]
    return parts[-1].split(".")[0] if parts else ""


class Phase(Section):
    """A part of the run, to the share `until` of its steps, in which sources weigh otherwise."""

    until: float = Field(gt=0, le=1)
    weights: dict[str, float]


class ExampleSource(DataSource):
    """Examples of a path: their format where it is not told by their fields, and how their fields are named."""

    format: str | None = None
    fields: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _unnamed(cls, value: Any) -> Any:
        return {"path": value, "name": "conversations"} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _short(self, whole: SerializerFunctionWrapHandler) -> Any:
        return whole(self)


class DataSection(Section):
    """Which text, how it is cut into documents and split, and how several sources are mixed."""

    sources: list[DataSource] = setting(
        list, "Files, folders, globs or URLs of text.", panel=DATA_PANEL, option=""
    )
    temperature: float = setting(
        1.0, "Evens out the shares of several sources: share^(1/temperature).", panel=DATA_PANEL, ge=1
    )
    phases: list[Phase] = setting(list, "Parts of the run with weights of their own.", option="")
    streaming: bool = setting(
        False, "Read the text while training and write no shards.", panel=DATA_PANEL, option="--stream"
    )
    shuffle_rows: int = setting(1024, "Rows that a stream is shuffled over.", panel=DATA_PANEL, ge=1)
    text_field: str = setting("text", "Field of .jsonl rows.", panel=DATA_PANEL)
    documents: DocumentsRule | None = setting(
        None, "What a document is in .txt: file, blank-line or line.", panel=DATA_PANEL
    )
    validation: list[str] = setting(list, "Files held out, instead of a share.", panel=DATA_PANEL)
    validation_fraction: float = setting(
        0.02, "Share of the documents that is held out.", panel=DATA_PANEL, gt=0, lt=1
    )
    benchmarks: list[str] = setting(
        list, "Evaluation files that the training text must not hold.", panel=DATA_PANEL
    )
    contamination: Literal["refuse", "warn", "off"] = setting(
        "refuse", "Where it holds them: refuse, warn or off.", panel=DATA_PANEL
    )
    parse_specials: bool = setting(
        False,
        "Special tokens written out in the text are such: it was rendered by a chat layout.",
        panel=DATA_PANEL,
    )
    prepared: str | None = setting(
        None, "Folder of `mmrec data tokenize`, instead of files.", panel=DATA_PANEL
    )


class Chunking(Section):
    """Settings of chunking raw text into blocks. In `hard_cut` and `train_only_after` a typed \\n is a line end."""

    chunk_length: int = setting(256, "Tokens of a block, BOS and EOS among them.", panel=TEXT_PANEL, ge=8)
    overlap: bool = setting(True, "Blocks across the borders too.", panel=TEXT_PANEL)
    sliding_window: bool = setting(
        False, "A block starts at every sentence; --overlap then adds nothing.", panel=TEXT_PANEL
    )
    hard_cut: str = setting("\n\n\n", 'No block goes across this; "" cuts nowhere.', panel=TEXT_PANEL)
    min_chars: int = setting(0, "Leave out blocks with fewer characters.", panel=TEXT_PANEL, ge=0)
    add_bos: bool = setting(
        True,
        "Begin blocks with BOS, where the tokenizer puts it before a text.",
        panel=TEXT_PANEL,
        option="--bos",
    )
    add_eos: bool = setting(True, "End blocks with EOS.", panel=TEXT_PANEL, option="--eos")
    eos_placement: Literal["every_block", "hard_cut"] = setting(
        "every_block",
        "Where EOS stands: every_block, or hard_cut (only where a part ends).",
        panel=TEXT_PANEL,
    )
    too_long: LongSentences = setting(
        "split",
        "A sentence over the chunk length: split, trim or drop.",
        panel=TEXT_PANEL,
        option="--long-sentences",
    )
    train_only_after: str = setting(
        "", "Learn only what follows this in a block; blocks without it are left out.", panel=TEXT_PANEL
    )
    language: str = setting("en", "Whose rules find the sentences: en, tr …", panel=TEXT_PANEL)

    @field_validator("hard_cut", "train_only_after")
    @classmethod
    def _line_ends(cls, value: str) -> str:
        return value.replace("\\n", "\n")

    @field_validator("language")
    @classmethod
    def _known(cls, value: str) -> str:
        return get_language(value).code
