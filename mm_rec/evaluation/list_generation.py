"""Answers of a model to list-format prompts, and the training sentences that it may have memorised."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.data.conversations.conversation import ChatMessage
from mm_rec.data.conversations.rendering import chat_prompt_ids
from mm_rec.evaluation.list_format import AnswerFunction
from mm_rec.inference.engine import Engine
from mm_rec.inference.generate import encode_prompt, stop_ids
from mm_rec.sources.documents import read_documents
from mm_rec.stories.wordlists.entries import read_entries
from mm_rec.stories.wordlists.prompts import instruction_text

_ANSWERS = re.compile(r"### Response:\n(.*?)(?:\n\n|\Z)", re.DOTALL)
_NUMBERED = re.compile(r"^\d{1,3}\. (.+)$", re.MULTILINE)
_NEXT_EXAMPLE = "\n\n\n"  # where a model that never learnt an end goes on with another example


def greedy_answer_function(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, instruction: bool, max_new_tokens: int
) -> AnswerFunction:
    """Return a function that answers prompts by greedy decoding, a batch at a time.

    `instruction`: written as in the user's documents, "### Instruction: … ### Response:"; else as a chat.
    """
    engine = Engine(model)

    def read(prompt: str) -> list[int]:
        if not instruction:
            return chat_prompt_ids(tokenizer, [ChatMessage("user", prompt)])
        return encode_prompt(tokenizer, instruction_text(prompt, ""))

    def answer(prompts: list[str]) -> list[str]:
        replies = engine.generate_greedy(
            list(map(read, prompts)), max_new_tokens, stop_ids(tokenizer, engine.model)
        )
        texts = (str(tokenizer.decode(reply, skip_special_tokens=True)) for reply in replies)
        return [text.split(_NEXT_EXAMPLE)[0].strip() for text in texts]

    return answer


def read_training_sentences(paths: Sequence[str]) -> Iterable[str]:
    """Yield the sentences of training files: the answers of list-format text (.txt), or those of a list of words."""
    for path in paths:
        if path.endswith(".txt"):
            for document in read_documents([path], documents="file"):
                for answer in _ANSWERS.findall(document.text):
                    yield from _NUMBERED.findall(answer)
        else:
            yield from (entry.sentence for entry in read_entries(path))
