"""Text as it comes: whole characters, stop strings, prompts."""

from __future__ import annotations

import pytest
from small_models import BuildModel
from transformers import PreTrainedTokenizerBase

from mm_rec.inference.generate import (
    IncrementalDetokenizer,
    encode_prompt,
    encode_rendered,
    encode_text,
    stop_ids,
)


def pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int], *stop: str) -> list[str]:
    stream = IncrementalDetokenizer(tokenizer, stop)
    return [*(stream.push(token) for token in ids), stream.finish()]


@pytest.mark.parametrize(
    "text",
    [
        "Küçük çocuk ırmağın kıyısında; İSTANBUL, ığdır, ŞÜPHE.",
        "Yıldızlar ✨ ve 👩‍👩‍👧 aile, 日本語 – été\n\tson",
        "  two spaces, ▁ and a\ufdd0mark ",
        "",
    ],
)
def test_pieces_together_are_the_text_and_hold_whole_characters(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    given = pieces(tokenizer, encode_rendered(tokenizer, text))
    assert "".join(given) == text
    assert not any("\ufffd" in piece for piece in given)


def test_a_character_in_four_tokens_comes_with_the_last(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = encode_rendered(tokenizer, "a👍b")
    assert tokenizer.convert_ids_to_tokens(ids)[1] == "<0xF0>"
    assert pieces(tokenizer, ids) == ["a", "", "", "", "👍", "b", ""]


def test_broken_bytes_are_shown_and_hold_up_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    first, second = tokenizer.convert_tokens_to_ids(["<0xF0>", "<0x9F>"])
    (letter,) = encode_rendered(tokenizer, "a")
    given = pieces(tokenizer, [first, second, letter])
    assert given[:2] == ["", ""]
    assert given[2].strip("\ufffd") == "a"
    assert "".join(pieces(tokenizer, [first])) == "\ufffd"
    given = pieces(tokenizer, [second] * 9)
    assert set("".join(given)) == {"\ufffd"}
    assert given[5]
    good = encode_rendered(tokenizer, "ş" if len(encode_rendered(tokenizer, "ş")) > 1 else "é")
    assert "".join(pieces(tokenizer, [*good, first, letter])).endswith("a")


def test_special_tokens_are_left_out(tokenizer: PreTrainedTokenizerBase) -> None:
    assert "".join(pieces(tokenizer, encode_rendered(tokenizer, "<|user|>\nAyşe<|endoftext|>."))) == "\nAyşe."


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["river and"], "She lived by the "),
        (["r"], "She lived by the "),
        (["She"], ""),
        (["absent", "the", "by the"], "She lived "),
        (["songs.!"], "She lived by the river and sang old songs."),
        (["songs.", "absent"], "She lived by the river and sang old "),
    ],
)
def test_stop_strings_wherever_the_tokens_end(
    tokenizer: PreTrainedTokenizerBase, stop: list[str], expected: str
) -> None:
    text = "She lived by the river and sang old songs."
    letters = [token for letter in text for token in encode_rendered(tokenizer, letter)]
    for ids in (encode_rendered(tokenizer, text), letters):
        given = pieces(tokenizer, ids, *stop)
        assert "".join(given) == expected
        assert all(expected.startswith("".join(given[:count])) for count in range(len(given)))


def test_stopped_says_so_and_takes_no_more(tokenizer: PreTrainedTokenizerBase) -> None:
    stream = IncrementalDetokenizer(tokenizer, ["ab"])
    for letter in "xab":
        stream.push(encode_rendered(tokenizer, letter)[0])
    assert stream.stopped
    assert stream.push(encode_rendered(tokenizer, "y")[0]) == ""
    assert stream.finish() == ""


def test_what_may_become_a_stop_string_waits(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = [encode_rendered(tokenizer, letter)[0] for letter in "aaab"]
    assert pieces(tokenizer, ids, "aac") == ["", "", "a", "aab", ""]


def test_prompts_start_with_bos_once(tokenizer: PreTrainedTokenizerBase) -> None:
    bos, user = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|user|>"])
    assert encode_prompt(tokenizer, "") == [bos]
    assert encode_rendered(tokenizer, "<|user|>") == [user]  # what a template rendered has its own beginning
    assert encode_rendered(tokenizer, "<|endoftext|><|user|>") == [bos, user]
    plain = encode_prompt(tokenizer, "<|endoftext|><|user|>")  # text, as a corpus is read
    assert plain[0] == bos and not {bos, user} & set(plain[1:])
    assert plain == [bos, *encode_text(tokenizer, "<|endoftext|><|user|>")]
    assert tokenizer.decode(plain[1:]) == "<|endoftext|><|user|>"


def test_all_ends_that_a_models_folder_names_stop_it(
    tokenizer: PreTrainedTokenizerBase, build_model: BuildModel
) -> None:
    model = build_model("llama")
    assert stop_ids(tokenizer, model) == {tokenizer.eos_token_id}
    model.generation_config.eos_token_id = 7
    assert stop_ids(tokenizer, model) == {7, tokenizer.eos_token_id}
    model.generation_config.eos_token_id = [7, 9]
    assert stop_ids(tokenizer, model) == {7, 9, tokenizer.eos_token_id}
