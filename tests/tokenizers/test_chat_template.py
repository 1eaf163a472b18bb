"""The chat template: the exact text, and the mask of assistant tokens, token by token."""

from __future__ import annotations

import pytest
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

CONVERSATION = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": " Ayşe  kim? "},
    {"role": "assistant", "content": "A girl.\nşarkı 👍"},
    {"role": "user", "content": ""},
    {"role": "assistant", "content": ""},
]


def test_text_of_a_conversation(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.apply_chat_template(CONVERSATION, tokenize=False) == (
        "<|system|>\nBe kind.\n<|endoftext|>\n"
        "<|user|>\n Ayşe  kim? \n<|endoftext|>\n"
        "<|assistant|>\nA girl.\nşarkı 👍\n<|endoftext|>\n"
        "<|user|>\n\n<|endoftext|>\n"
        "<|assistant|>\n\n<|endoftext|>\n"
    )


def test_generation_prompt_is_how_an_answer_starts(tokenizer: PreTrainedTokenizerBase) -> None:
    asked = tokenizer.apply_chat_template(CONVERSATION[:2], tokenize=False, add_generation_prompt=True)
    assert asked.endswith("<|endoftext|>\n<|assistant|>\n")
    assert tokenizer.apply_chat_template(CONVERSATION[:3], tokenize=False).startswith(asked)
    prompt = tokenizer.apply_chat_template(CONVERSATION[:2], add_generation_prompt=True)["input_ids"]
    answered = tokenizer.apply_chat_template(CONVERSATION[:3])["input_ids"]
    assert answered[: len(prompt)] == prompt


def test_mask_of_assistant_tokens_token_by_token(tokenizer: PreTrainedTokenizerBase) -> None:
    rendered = tokenizer.apply_chat_template(
        [
            {"role": "system", "content": "old"},
            {"role": "user", "content": "song \n"},
            {"role": "assistant", "content": "old\nşarkı 👍"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": ""},
        ],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    pieces = tokenizer.convert_ids_to_tokens(rendered["input_ids"])
    masked = list(zip(pieces, rendered["assistant_masks"], strict=True))
    old, song, turkish = (tokenizer.tokenize(text) for text in ("old", "song ", "şarkı"))
    thumb = [f"<0x{byte:02X}>" for byte in "👍".encode()]
    expected = [
        *((piece, 0) for piece in ["<|system|>", "\n", *old, "\n", "<|endoftext|>", "\n"]),
        *((piece, 0) for piece in ["<|user|>", "\n", *song, "\n", "\n", "<|endoftext|>", "\n"]),
        *((piece, 0) for piece in ["<|assistant|>", "\n"]),
        *((piece, 1) for piece in [*old, "\n", *turkish, "▁", *thumb, "\n", "<|endoftext|>"]),
        ("\n", 0),
        *((piece, 0) for piece in ["<|user|>", "\n", "a", "\n", "<|endoftext|>", "\n"]),
        *((piece, 0) for piece in ["<|assistant|>", "\n"]),
        *((piece, 1) for piece in ["\n", "<|endoftext|>"]),
        ("\n", 0),
    ]
    assert masked == expected


def test_ids_are_those_of_the_rendered_text(tokenizer: PreTrainedTokenizerBase) -> None:
    text = tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.apply_chat_template(CONVERSATION)["input_ids"] == ids
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "function", "content": "x"}, "unknown role function"),
        ({"role": "User", "content": "x"}, "unknown role User"),
        ({"role": "assistant", "content": 7}, "from assistant is not text"),
        ({"role": "user", "content": [{"type": "text", "text": "x"}]}, "from user is not text"),
    ],
)
def test_what_the_template_cannot_render_is_refused(
    tokenizer: PreTrainedTokenizerBase, message: dict[str, object], reason: str
) -> None:
    with pytest.raises(TemplateError, match=reason):
        tokenizer.apply_chat_template([message], tokenize=False)
