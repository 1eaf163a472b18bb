"""Questions with known answers, scored by exact match of the greedy continuation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from mm_rec.data.conversations.conversation import ChatMessage
from mm_rec.data.conversations.rendering import chat_prompt_ids
from mm_rec.errors import DataError
from mm_rec.inference.engine import Engine
from mm_rec.inference.generate import encode_prompt, encode_text, stop_ids
from mm_rec.tokenizers.loading import vocabulary_size

BATCH_QUESTIONS = 64
_SPARE_TOKENS = 4  # an answer this much longer than the longest right one is wrong, however it goes on


class ExactMatchQuestion(Protocol):
    """A prompt whose right continuation, up to a newline or the end and stripped, is `answer`."""

    @property
    def prompt(self) -> str:
        """The text to continue."""

    @property
    def answer(self) -> str:
        """The one right answer."""

    @property
    def messages(self) -> Sequence[ChatMessage]:
        """Of a chat: what the prompt says, as messages, which are then what is read; otherwise empty."""

    @property
    def language(self) -> str:
        """A language code."""

    @property
    def kind(self) -> str:
        """The kind of question, to group by."""


def score_exact_match(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[ExactMatchQuestion],
    batch_size: int = BATCH_QUESTIONS,
) -> dict[str, Any]:
    """Answer the questions by greedy decoding in batches and count the right ones.

    Returns plain values: `questions`, `right`, `accuracy`; `groups` with the same for each "language kind"; and
    `answers`, in order, as {prompt, answer, given, right}. Raises DataError where there is no question.
    """
    if not questions:
        raise DataError("there are no questions to ask. Give at least one")
    prompts = [
        chat_prompt_ids(tokenizer, question.messages)
        if question.messages
        else encode_prompt(tokenizer, question.prompt)
        for question in questions
    ]
    longest = max(len(encode_text(tokenizer, f" {question.answer}")) for question in questions)
    ends = stop_ids(tokenizer, engine.model) | _newline_ids(tokenizer)
    # Rows of like length stand together: less padding.
    order = sorted(range(len(questions)), key=lambda index: len(prompts[index]))
    given = [""] * len(questions)
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        replies = engine.generate_greedy([prompts[row] for row in rows], longest + _SPARE_TOKENS, ends)
        for row, reply in zip(rows, replies, strict=True):
            given[row] = str(tokenizer.decode(reply, clean_up_tokenization_spaces=False)).strip()
    return _summary(questions, given)


def _newline_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids whose text holds a newline."""
    ids = range(vocabulary_size(tokenizer))
    texts = tokenizer.batch_decode([[index] for index in ids], clean_up_tokenization_spaces=False)
    return frozenset(index for index, text in zip(ids, texts, strict=True) if "\n" in text)


def _summary(questions: Sequence[ExactMatchQuestion], given: list[str]) -> dict[str, Any]:
    right = [reply == question.answer for question, reply in zip(questions, given, strict=True)]
    groups: dict[str, list[bool]] = {}
    for question, correct in zip(questions, right, strict=True):
        groups.setdefault(f"{question.language} {question.kind}", []).append(correct)
    return {
        **_counts(right),
        "groups": {name: _counts(group) for name, group in sorted(groups.items())},
        "answers": [
            {"prompt": question.prompt, "answer": question.answer, "given": reply, "right": correct}
            for question, reply, correct in zip(questions, given, right, strict=True)
        ],
    }


def _counts(right: list[bool]) -> dict[str, Any]:
    return {"questions": len(right), "right": sum(right), "accuracy": sum(right) / len(right)}
