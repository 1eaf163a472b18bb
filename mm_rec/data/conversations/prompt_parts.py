"""A prompt cut where messages end, so that the state read up to there can be cached and continued.

Every message begins with a special token, where a tokenizer always cuts, so the parts' ids are those of the whole.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from mm_rec.data.conversations.conversation import ChatMessage, Conversation
from mm_rec.data.conversations.rendering import conversation_text, prompt_text
from mm_rec.errors import DataError, TokenizerError
from mm_rec.tokenizers.chat_template import known_chat_template
from mm_rec.tokenizers.loading import special_token_pattern

_CONTENT = "what a message says"  # of one whose surroundings are looked at


def prompt_parts(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[ChatMessage],
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[str]:
    """The text of `prompt_text`, cut after the system messages that open it, and before the answer begins."""
    whole = prompt_text(tokenizer, messages, tools)
    opening = list(itertools.takewhile(lambda one: one.role in ("system", "developer"), messages))
    cuts = {0, len(whole)}
    if opening or tools:
        with contextlib.suppress(DataError):  # a foreign template may ask for a question after them
            text = conversation_text(tokenizer, Conversation(tuple(opening), tuple(tools)))
            if whole.startswith(text) and _begins_message(tokenizer, whole[len(text) :]):
                cuts.add(len(text))
    with contextlib.suppress(DataError):  # or for more than a question
        answer = _generation_prompt(tokenizer)
        if whole.endswith(answer) and _begins_message(tokenizer, answer):
            cuts.add(len(whole) - len(answer))
    return [whole[start:stop] for start, stop in itertools.pairwise(sorted(cuts))]


def continuation_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[ChatMessage]) -> str:
    """The text of messages that follow others, up to where the answer begins; raises TokenizerError for a template
    that is not of our layouts, which may write a message in one way here and in another there.
    """
    require_known_layout(tokenizer)
    opening = conversation_text(tokenizer, Conversation(()))
    return prompt_text(tokenizer, messages).removeprefix(opening)


def turn_end_text(tokenizer: PreTrainedTokenizerBase, reply: str) -> str:
    """Return the text that closes the assistant's turn after a reply, which may already end with a part of it."""
    answered = Conversation((ChatMessage("user", _CONTENT), ChatMessage("assistant", _CONTENT)))
    closing = conversation_text(tokenizer, answered).rpartition(_CONTENT)[2]
    lengths = range(min(len(reply), len(closing)), 0, -1)
    return closing[next((length for length in lengths if reply.endswith(closing[:length])), 0) :]


def require_known_layout(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise TokenizerError for a chat template that is not one of our layouts."""
    if known_chat_template(tokenizer) is None:
        raise TokenizerError(
            "this model's chat template is not one of MM-Rec's layouts, so a conversation cannot be gone on with "
            "without its beginning. Send all of its messages"
        )


def _generation_prompt(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the generation prompt: the text between the last message and the assistant's answer."""
    asked = (ChatMessage("user", _CONTENT),)
    return prompt_text(tokenizer, asked).removeprefix(conversation_text(tokenizer, Conversation(asked)))


def _begins_message(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    return special_token_pattern(tokenizer).match(text) is not None
