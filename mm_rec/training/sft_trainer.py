"""Fine-tuning and answering from Python, one call at a time, as the user's documents have it.

For a whole run (packing, validation, resume) use `mmrec sft` or `mm_rec.pipeline.run.run_stage`.
"""

from __future__ import annotations

import json
import logging
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.cpu import PrecisionName
from mm_rec.data.chat_format import Messages, to_chat_messages
from mm_rec.data.conversations.conversation import Conversation
from mm_rec.data.conversations.issues import IssueError
from mm_rec.data.conversations.preflight import preflight
from mm_rec.data.conversations.rendering import prompt_text, reject_special_tokens
from mm_rec.data.conversations.validation import check_conversation
from mm_rec.inference.engine import Engine
from mm_rec.inference.generate import encode_rendered, stop_ids
from mm_rec.inference.sampler import SamplingParams
from mm_rec.models.cross_entropy import IGNORE_INDEX
from mm_rec.models.resize import align_special_tokens, resize_token_embeddings
from mm_rec.models.traits import traits_of
from mm_rec.runtime import choose_precision
from mm_rec.tokenizers.assistant_format import AssistantReply, assistant_format
from mm_rec.tokenizers.chat_template import prepare_for_chat
from mm_rec.training.objectives import next_token

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTConfig:
    """Settings of `SFTTrainer`.

    `model_name` is a note of the tokenizer's name. Of a conversation over `max_length` tokens the oldest exchanges are
    cut. With `only_predict_assistant` false every token but the first is learnt.
    """

    model_name: str = "gpt-4"
    max_length: int = 2048
    only_predict_assistant: bool = True
    precision: PrecisionName = "auto"


class SFTTrainer:
    """One step of fine-tuning at a time, on one conversation.

    Make the optimizer after it: a vocabulary that is too small for the tokenizer is enlarged here.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: SFTConfig | None = None
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config or SFTConfig()
        if not tokenizer.chat_template:
            prepare_for_chat(tokenizer)
        resize_token_embeddings(model, tokenizer, _log.warning)
        align_special_tokens(model, tokenizer)

    def train_step(
        self,
        messages: Messages,
        optimizer: torch.optim.Optimizer,
        device: torch.device | str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, float]:
        """Learn the answers of one conversation; returns `loss` (nats a learnt token), `perplexity` and `tokens`.

        Raises DataError for a conversation in which nothing is learnt or that does not fit.
        """
        place = torch.device(device) if device is not None else self.model.device
        self.model.to(place)  # type: ignore[arg-type]
        batch = self._batch(Conversation(tuple(to_chat_messages(messages)), tuple(tools)))
        precision = choose_precision(self.config.precision, place)
        self.model.train()
        optimizer.zero_grad(set_to_none=True)
        objective = next_token(precision.dtype)
        summed = objective(self.model, {name: tensor.to(place) for name, tensor in batch.items()})["loss"]
        loss = summed.total / summed.count
        loss.backward()
        optimizer.step()
        value = float(loss.detach())
        return {"loss": value, "perplexity": math.exp(min(value, 700.0)), "tokens": float(summed.count)}

    def _batch(self, conversation: Conversation) -> dict[str, torch.Tensor]:
        """The conversation as one row: `input_ids` and `labels` (1, T) int64."""
        if issues := check_conversation(conversation, self.tokenizer.all_special_tokens):
            raise IssueError(issues)
        limit = traits_of(self.model.config).context_limit or self.config.max_length
        most = min(limit, self.config.max_length)
        checked = preflight(self.tokenizer, [conversation], max_length=most, too_long="turns")
        if checked.issues:
            raise IssueError(checked.issues)
        (rendered,) = checked.rendered
        ids = torch.from_numpy(rendered.ids.astype("int64"))[None]
        labels = ids.clone()
        if self.config.only_predict_assistant:
            labels[0, ~torch.from_numpy(rendered.loss_mask)] = IGNORE_INDEX
        labels[0, 0] = IGNORE_INDEX
        return {"input_ids": ids, "labels": labels}


class ChatCompletionAPI:
    """A model's answers in the form of OpenAI's chat completions, without a server."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_name: str = "mm-rec"
    ) -> None:
        self.model, self.tokenizer, self.model_name = model, tokenizer, model_name

    def create(
        self,
        messages: Messages,
        max_tokens: int = 200,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        device: torch.device | str | None = None,
    ) -> dict[str, Any]:
        """Answer messages; returns the fields of OpenAI's `chat.completion` as plain values.

        A call that is not well-formed stays in the content as it was written. Raises UserError where a message holds a
        special token.
        """
        engine = Engine(self.model, device)
        session = engine.session()
        given = to_chat_messages(messages)
        reject_special_tokens(
            self.tokenizer, [*(message.content for message in given), json.dumps(list(tools), default=dict)]
        )
        prompt = prompt_text(self.tokenizer, given, tools)
        session.prefill(encode_rendered(self.tokenizer, prompt))
        prompt_tokens = session.length
        sampling = SamplingParams(temperature=temperature, top_p=top_p, max_new_tokens=max_tokens, seed=seed)
        ids = list(session.generate(sampling, stop_ids(self.tokenizer, self.model)))
        message = self._message(str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)), prompt)
        reason = "tool_calls" if "tool_calls" in message else "stop" if session.ended else "length"
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.model_name,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": len(ids),
                "total_tokens": prompt_tokens + len(ids),
            },
        }

    def _message(self, text: str, prompt: str) -> dict[str, Any]:
        try:
            reply = assistant_format(self.tokenizer).parse(text, prompt)
        except ValueError:
            reply = AssistantReply(text.strip())
        content, calls = reply.content, reply.calls
        message: dict[str, Any] = {"role": "assistant", "content": content or None if calls else content}
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{uuid.uuid4().hex[:24]}",
                    "type": "function",
                    "function": {
                        "name": call["name"],
                        "arguments": json.dumps(call["arguments"], ensure_ascii=False),
                    },
                }
                for call in calls
            ]
        return message
