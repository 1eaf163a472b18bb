"""Kept prefix_cache: the longest of the right key is found, a copy is given, and memory has a limit."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from mm_rec.inference.engine import Engine, Session
from mm_rec.inference.prefix_cache import PrefixCache

WORDS = {"Once ": [7, 30, 121], "Once there ": [7, 30, 121, 45, 9], "Twice ": [3, 2]}


@pytest.fixture
def engine(model: PreTrainedModel) -> Engine:
    return Engine(model)


def read(engine: Engine, text: str) -> Session:
    session = engine.session()
    session.prefill(WORDS[text])
    return session


def test_the_longest_that_a_text_begins_with_goes_on_as_if_read_anew(engine: Engine) -> None:
    prefix_cache = PrefixCache(10**9)
    for text in WORDS:
        prefix_cache.insert("a", text, read(engine, text))
    found = prefix_cache.match_prefix("a", "Once there was")
    assert found is not None and found[0] == "Once there "
    session = found[1]
    assert session.length == 5
    session.prefill([11, 12])
    again = engine.session()
    again.prefill([*WORDS["Once there "], 11, 12])
    assert int(session.next_logits().argmax()) == int(again.next_logits().argmax())
    second = prefix_cache.match_prefix("a", "Once there was")  # what was given is a copy
    assert second is not None and second[1].length == 5


def test_nothing_is_found_of_another_key_or_that_is_the_whole_text(engine: Engine) -> None:
    prefix_cache = PrefixCache(10**9)
    prefix_cache.insert(("m", "adapter 1"), "Once ", read(engine, "Once "))
    assert prefix_cache.match_prefix(("m", "adapter 2"), "Once there") is None
    assert prefix_cache.match_prefix(("m", "adapter 1"), "Once ") is None  # nothing would be left to read
    assert prefix_cache.match_prefix(("m", "adapter 1"), "Onc") is None
    assert prefix_cache.match_prefix(("m", "adapter 1"), "Once there") is not None


def test_those_not_used_for_longest_make_room(engine: Engine) -> None:
    size = read(engine, "Once ").state.nbytes
    prefix_cache = PrefixCache(2 * size)
    prefix_cache.insert("a", "Once ", read(engine, "Once "))
    prefix_cache.insert("a", "Twice ", read(engine, "Twice "))
    assert prefix_cache.match_prefix("a", "Once more") is not None  # used, so the other is the oldest
    prefix_cache.insert("a", "Once there ", read(engine, "Once there "))
    assert prefix_cache.match_prefix("a", "Twice more") is None
    assert prefix_cache.match_prefix("a", "Once more") is not None
    assert prefix_cache.bytes == 2 * size
    prefix_cache.insert("a", "Once ", read(engine, "Once "))  # again: in place of the one before
    assert (len(prefix_cache), prefix_cache.bytes) == (2, 2 * size)
    small = PrefixCache(size - 1)
    small.insert("a", "Once ", read(engine, "Once "))
    assert (len(small), small.bytes) == (0, 0)
