"""A conversation in parts is the whole conversation, text for text and id for id, in every layout."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_models import tokenizer_folder  # noqa: F401
from transformers import PreTrainedTokenizerBase

from mm_rec.data.conversations.conversation import ChatMessage, ToolCall
from mm_rec.data.conversations.prompt_parts import continuation_text, prompt_parts, turn_end_text
from mm_rec.data.conversations.rendering import chat_prompt_ids, encode_texts, prompt_text
from mm_rec.errors import TokenizerError
from mm_rec.tokenizers.chat_template import prepare_for_chat
from mm_rec.tokenizers.loading import load_tokenizer

TOOLS = ({"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}},)
SYSTEM = ChatMessage("system", "You are brief.")
TURNS = (
    ChatMessage("user", "What is it?"),
    ChatMessage("assistant", "", (ToolCall("look", {"where": "there"}, "1"),)),
    ChatMessage("tool", "a tree", tool_call_id="1"),
    ChatMessage("assistant", "It is a tree.\n\nA tall one"),
    ChatMessage("user", "And now?"),
)


@pytest.fixture(params=["default", "chatml", "llama3"])
def tokenizer(request: pytest.FixtureRequest, tokenizer_folder: Path) -> PreTrainedTokenizerBase:  # noqa: F811
    tokenizer = load_tokenizer(tokenizer_folder)
    prepare_for_chat(tokenizer, request.param)
    return tokenizer


@pytest.mark.parametrize("opening", [(), (SYSTEM,), (SYSTEM, ChatMessage("developer", "Briefer."))])
@pytest.mark.parametrize("tools", [(), TOOLS])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_parts_are_the_whole(
    tokenizer: PreTrainedTokenizerBase,
    opening: tuple[ChatMessage, ...],
    tools: tuple[dict[str, object], ...],
    count: int,
) -> None:
    messages = [*opening, *TURNS[:count]]
    parts = prompt_parts(tokenizer, messages, tools)
    assert "".join(parts) == prompt_text(tokenizer, messages, tools)
    ids = [token for one in encode_texts(tokenizer, parts) for token in one.ids]
    assert ids == chat_prompt_ids(tokenizer, messages, tools)
    assert len(parts) == (3 if opening or tools else 2)
    if opening or tools:
        other = prompt_parts(tokenizer, [*opening, ChatMessage("user", "Something else")], tools)
        assert other[0] == parts[0]  # what opens a conversation is found again in another


def test_an_answer_its_end_and_what_follows_are_the_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    first, question = [SYSTEM, TURNS[0]], TURNS[4]
    for reply in ("A tree", "A tree.\nTwo", "A <b"):
        whole = prompt_text(tokenizer, [*first, ChatMessage("assistant", reply), question])
        for said in (reply, reply + "\n") if "\n" in turn_end_text(tokenizer, reply)[:1] else (reply,):
            closed = said + turn_end_text(tokenizer, said)
            assert prompt_text(tokenizer, first) + closed + continuation_text(tokenizer, [question]) == whole


def test_a_foreign_template_has_no_turns_of_its_own(tokenizer_folder: Path) -> None:  # noqa: F811
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    with pytest.raises(TokenizerError, match="Send all of its messages"):
        continuation_text(tokenizer, [TURNS[0]])
    assert prompt_parts(tokenizer, [TURNS[0]]) == ["[user]What is it?"]
