from __future__ import annotations

import pytest

from mm_rec.errors import ConfigError
from mm_rec.sources.catalogue import CatalogueEntry, find_source, list_sources, load_catalogue

MINIMAL = {
    "name": "small",
    "title": "Small",
    "languages": ["tr"],
    "licence": "CC0",
    "licence_page": "https://example.org/licence",
    "good_for": "tests",
    "hub": "some/set",
}


def test_every_corpus_that_the_documents_name_is_there() -> None:
    web = {"openwebtext", "c4", "fineweb", "fineweb-2", "cc100-tr", "oscar"}
    others = {"wikitext-2", "wikitext-103", "wikipedia", "bookcorpus", "codeparrot", "arxiv", "tinystories"}
    instructions = {"alpaca", "self-instruct", "sharegpt"}
    assert web | others | instructions <= set(load_catalogue())


@pytest.mark.parametrize("source", load_catalogue().values(), ids=lambda source: source.name)
def test_an_entry_can_be_downloaded_and_says_whose_it_is(source: CatalogueEntry) -> None:
    language = source.choose_language("tr" if source.has_language("tr") else None)
    assert "{" not in (source.fill(source.config, language) or "")
    assert "{" not in (source.fill(source.files, language) or "")
    assert source.licence and source.licence_page.startswith("https://")
    assert ("{language}" in f"{source.config}{source.files}") == (source.languages == "any")


def test_the_turkish_part_of_the_sets_of_many_languages() -> None:
    configs = {
        name: find_source(name).fill(find_source(name).config, "tr")
        for name in ("wikipedia", "c4", "fineweb-2")
    }
    assert configs == {"wikipedia": "20231101.tr", "c4": "tr", "fineweb-2": "tur_Latn"}
    assert find_source("fineweb-2").choose_language(None) == "tr"
    assert find_source("oscar").fill(find_source("oscar").files, "tr") == "tr_meta/*.jsonl.zst"


def test_the_list_of_one_language() -> None:
    turkish = {source.name for source in list_sources("tr")}
    assert {"wikipedia", "fineweb-2", "cc100-tr"} <= turkish
    assert not turkish & {"openwebtext", "tinystories", "codeparrot"}
    assert len(list_sources()) == len(load_catalogue())


def test_a_name_that_is_not_there_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'wikitext-103'"):
        find_source("wikitext103")
    with pytest.raises(ConfigError, match="`mmrec data sources` lists them all"):
        find_source("zzz")


def test_a_language_that_a_set_has_not_or_must_be_told() -> None:
    with pytest.raises(ConfigError, match="openwebtext is in en, not in 'tr'"):
        find_source("openwebtext").choose_language("tr")
    with pytest.raises(ConfigError, match="wikipedia has many languages: name one"):
        find_source("wikipedia").choose_language(None)
    assert find_source("openwebtext").choose_language(None) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_field": None}, "row_fields"),
        ({"row_fields": ["messages"]}, "text_field: null"),
        ({"files": "a.txt"}, "every layout but datasets"),
        ({"layout": "jsonl"}, "every layout but datasets"),
        ({"hub": "set"}, "hub"),
        ({"licenses": "CC0"}, "did you mean 'licence'"),
    ],
)
def test_an_entry_that_cannot_be_right_is_refused(change: dict[str, object], message: str) -> None:
    assert CatalogueEntry.read(MINIMAL).page == "https://huggingface.co/datasets/some/set"
    with pytest.raises(ConfigError, match=message):
        CatalogueEntry.read({**MINIMAL, **change})
