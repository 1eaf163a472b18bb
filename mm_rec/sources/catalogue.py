"""The catalogue of corpora that `mmrec data download` knows by name."""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import Literal, Self

import pydantic

from mm_rec.config import Section, load_yaml
from mm_rec.errors import ConfigError

HUB = "https://huggingface.co/datasets"
_FILE = Path(__file__).with_name("catalogue.yaml")

Layout = Literal["datasets", "jsonl", "json", "paragraphs"]


class CatalogueEntry(Section):
    """One corpus: what it is, whose licence it has, and how its rows are reached.

    `config` and `files` may hold "{language}". `layout` says how the rows are stored: "datasets" as the hub's own
    configurations, otherwise in `files` below `base` (the hub's repository unless given), with one JSON object a
    line ("jsonl"), one JSON array a file ("json") or text documents between blank lines ("paragraphs").
    """

    name: str = pydantic.Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    languages: tuple[str, ...] | Literal["any"]
    default_language: str | None = None
    language_codes: dict[str, str] = {}
    """The set's own code where it is not the two letters ("tr": "tur_Latn")."""
    size_gb: float | dict[str, float] | None = None
    """As published, about; by language where it differs; None where it is not known for certain."""
    licence: str
    licence_page: str
    good_for: str
    hub: str = pydantic.Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = None
    config: str | None = None
    split: str = "train"
    layout: Layout = "datasets"
    base: str | None = None
    files: str | None = None
    text_field: str | None = "text"
    row_fields: tuple[str, ...] = ()
    """Of a chat or instruction set, whose rows are kept whole as JSON: the fields that each must have."""
    document_start: str | None = None
    """Where rows are lines: the pattern of a line that begins a new document."""
    gated: bool = False
    cite: str | None = None
    note: str | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if (self.text_field is None) != bool(self.row_fields):
            raise ValueError("give text_field, or text_field: null with row_fields")
        if (self.layout == "datasets") != (self.files is None):
            raise ValueError("files belong to every layout but datasets")
        return self

    @property
    def page(self) -> str:
        """The set's page on the hub."""
        return f"{HUB}/{self.hub}"

    def has_language(self, language: str) -> bool:
        """Return True if the set has text in a language."""
        return self.languages == "any" or language in self.languages

    def choose_language(self, language: str | None) -> str | None:
        """The language to read, None where the set does not ask; raises ConfigError where it cannot be had."""
        if self.languages != "any":
            if language is not None and language not in self.languages:
                held = ", ".join(self.languages)
                raise ConfigError(f"{self.name} is in {held}, not in {language!r}. Leave --language out")
            return None
        chosen = language or self.default_language
        if chosen is None:
            raise ConfigError(f"{self.name} has many languages: name one, for example --language tr")
        return chosen

    def fill(self, pattern: str | None, language: str | None) -> str | None:
        """A `config` or `files` pattern with the set's own code of the language in it."""
        if pattern is None or language is None:
            return pattern
        return pattern.replace("{language}", self.language_codes.get(language, language))


@cache
def load_catalogue() -> dict[str, CatalogueEntry]:
    """Every source by its name, in the catalogue's order."""
    entries = load_yaml(_FILE)["sources"]
    sources = [
        CatalogueEntry.read(entry, where=f"{_FILE.name}, entry {entry.get('name')}") for entry in entries
    ]
    return {source.name: source for source in sources}


def find_source(name: str) -> CatalogueEntry:
    """The source of that name; raises ConfigError that names the nearest."""
    catalogue = load_catalogue()
    if name not in catalogue:
        close = difflib.get_close_matches(name, catalogue, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"there is no source called {name!r}. {hint}`mmrec data sources` lists them all")
    return catalogue[name]


def list_sources(language: str | None = None) -> list[CatalogueEntry]:
    """The sources that have text in a language, all of them without one."""
    return [
        source for source in load_catalogue().values() if language is None or source.has_language(language)
    ]
