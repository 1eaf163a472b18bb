"""A view of the loss mask: each token of a conversation, with the reason why it is trained on or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from mm_rec.data.conversations.conversation import ChatMessage, Conversation
from mm_rec.data.conversations.rendering import (
    conversation_text,
    encode_texts,
    render_with_spans,
    select_loss_spans,
)
from mm_rec.data.sections import TrainOn
from mm_rec.errors import DataError
from mm_rec.runs.jinja_templates import jinja_environment
from mm_rec.tokenizers.assistant_format import eot_token_ids
from mm_rec.tokenizers.template_rendering import Span, common_prefix_length

MaskReason = Literal[
    "answer", "end of turn", "weight 0", "earlier answer", "rewritten", "tools", "system", "developer", "user",
    "tool result", "layout", "first token",
]  # fmt: skip

# What each reason means; the first two are trained on.
REASONS: dict[MaskReason, str] = {
    "answer": "learnt: what the assistant says or calls",
    "end of turn": "learnt: where the assistant stops",
    "weight 0": "an answer that its weight of 0 leaves out",
    "earlier answer": "an answer before the last, with --train-on last",
    "rewritten": "an earlier answer, which the template writes otherwise here (without reasoning) than it was said",
    "tools": "definitions of the tools",
    "system": "the system's message",
    "developer": "the developer's message",
    "user": "the user's message",
    "tool result": "what a tool gave back",
    "layout": "role markers and line ends of the chat layout",
    "first token": "nothing stands before it to predict it from",
}
TRAINED_REASONS = ("answer", "end of turn")
_ROLES: dict[str, MaskReason] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "tool": "tool result",
}


@dataclass(frozen=True, slots=True)
class MaskedToken:
    """One token: its text (of a character's later bytes, the piece), whether it is trained on, and why or why not."""

    text: str
    trained_on: bool
    reason: MaskReason


def explain_mask(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, train_on: TrainOn = "all"
) -> list[MaskedToken]:
    """Every token of a conversation with its reason; the mask is that of `rendering.render`."""
    text, answers = render_with_spans(tokenizer, conversation)
    loss_spans = set(select_loss_spans(conversation, answers, train_on))
    regions = _regions(tokenizer, conversation, text)
    spans = zip(_answers(conversation), answers, strict=True)
    regions += [
        (span, "answer" if span in loss_spans else _left_out(message))
        for message, span in spans
        if span is not None
    ]
    regions += _rewritten(conversation, answers, text)
    encoding = encode_texts(tokenizer, [text])[0]
    tokens: list[MaskedToken] = []
    seen, ends = -1, eot_token_ids(tokenizer)
    for number, (token_id, piece, (start, stop)) in enumerate(
        zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True)
    ):
        # The innermost region, which is the last that holds the token's first character.
        reason: MaskReason = next((why for (a, b), why in reversed(regions) if a <= start < b), "layout")
        if reason == "answer" and token_id in ends:
            reason = "end of turn"
        trained_on = reason in TRAINED_REASONS
        if number == 0:
            trained_on, reason = False, "first token"
        tokens.append(MaskedToken(text[start:stop] if start > seen else piece, trained_on, reason))
        seen = max(seen, start)
    return tokens


def _rewritten(
    conversation: Conversation, answers: Sequence[Span | None], text: str
) -> list[tuple[Span, MaskReason]]:
    """Find earlier answers that the template writes otherwise once more follows, in order."""
    found: list[tuple[Span, MaskReason]] = []
    place = 0
    for message, span in zip(_answers(conversation), answers, strict=True):
        said = message.content.strip()
        start = span[0] if span is not None else text.find(said, place)
        if span is None and said and start >= 0:
            found.append(((start, start + len(said)), "rewritten"))
        place = max(place, start)
    return found


def _answers(conversation: Conversation) -> list[ChatMessage]:
    return [message for message in conversation.messages if message.role == "assistant"]


def _left_out(message: ChatMessage) -> MaskReason:
    return "weight 0" if message.weight == 0 else "earlier answer"


def _regions(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, text: str
) -> list[tuple[Span, MaskReason]]:
    """Find the contents of tools and messages by rendering ever more messages; none where a foreign
    template writes earlier messages otherwise.
    """
    regions: list[tuple[Span, MaskReason]] = []
    start = 0
    for count in range(len(conversation.messages) + 1):
        try:
            before = conversation_text(tokenizer, conversation.with_messages(conversation.messages[:count]))
        except DataError:  # some templates refuse a conversation without messages
            continue
        end = common_prefix_length(before, text)  # some templates close a conversation
        if count == 0:
            regions.append(((0, end), "tools"))
        else:
            message = conversation.messages[count - 1]
            place = text.rfind(message.content, start, end) if message.content else -1
            if place >= 0 and message.role in _ROLES:
                regions.append(((place, place + len(message.content)), _ROLES[message.role]))
        start = max(start, end)
    return regions


def count_reasons(conversations: Iterable[Sequence[MaskedToken]]) -> dict[MaskReason, int]:
    """Tokens by reason, in the order of REASONS."""
    counts = Counter(token.reason for tokens in conversations for token in tokens)
    return {reason: counts[reason] for reason in REASONS if counts[reason]}


def render_mask_page(
    conversations: Sequence[tuple[str, Sequence[MaskedToken]]], title: str, layout: str
) -> str:
    """The page (HTML) of conversations, each with the place that it was read from."""
    environment = jinja_environment(Path(__file__).parent)
    counts = count_reasons(tokens for _, tokens in conversations)
    return environment.get_template("masks.html").render(
        title=title,
        layout=layout,
        reasons=REASONS,
        trained_on=TRAINED_REASONS,
        counts=counts,
        total=sum(counts.values()),
        conversations=conversations,
    )
