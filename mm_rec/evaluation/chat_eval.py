"""Chat evaluation: each conversation's last answer is generated anew, and compared with the given one.

Two kinds of metrics. Teacher-forced: loss, perplexity and token accuracy over the given answer's tokens of the loss
mask (the end of the turn among them). Free: the model answers, and its reply is compared with the given answer
(`text_metrics`) and measured by itself: diversity, length, whether it ended by itself, and its format.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from mm_rec import __version__
from mm_rec.data.conversations.conversation import Conversation
from mm_rec.errors import ConfigError
from mm_rec.evaluation import text_metrics
from mm_rec.evaluation.chat_replies import (
    ChatExample,
    ChatProgress,
    ChatReply,
    TeacherForcedScores,
    generate_replies,
    make_examples,
    score_references,
)
from mm_rec.evaluation.judge import JudgeCase, JudgeConfig, Verdict, check_judge, judge_answers, judge_summary
from mm_rec.inference.engine import Engine
from mm_rec.inference.sampler import SamplingParams
from mm_rec.text.words import lower, words

GREEDY = SamplingParams(temperature=0, max_new_tokens=256)


@dataclass(frozen=True, slots=True)
class _ScoredReply:
    """An example with its reply and all scores."""

    example: ChatExample
    forced: TeacherForcedScores
    reply: ChatReply
    scores: dict[str, float]  # of the reply beside the given answer; empty where that is calls alone
    verdict: Verdict | None  # where there is a judge

    @property
    def category(self) -> str:
        """Return the category of the row, or else its language."""
        return str(self.example.conversation.metadata.get("category") or self.example.language)

    @property
    def words(self) -> list[str]:
        """The reply's words, in small letters."""
        return words(lower(self.reply.content, self.example.language))


def evaluate_chat(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    sampling: SamplingParams = GREEDY,
    *,
    judge: JudgeConfig | None = None,
    progress: ChatProgress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Answer each conversation's last turn and measure the replies; returns plain values, ready for JSON.

    `total` and `categories` have the same figures, `answers` each reply beside the given answer. A conversation that
    the model's context cannot hold is left out and named in `too_long`. `progress` is told (what, done, total).
    Raises DataError where a conversation has no answer, or none is short enough.
    """
    if sampling.stop:
        raise ConfigError("stop strings have no use here: a reply ends with its turn. Leave --stop out")
    signatures = text_metrics.signatures()
    if judge is not None:
        check_judge(judge)
    examples, too_long = make_examples(engine, tokenizer, conversations, sampling.max_new_tokens)
    forced = score_references(engine, examples, progress)
    replies = generate_replies(engine, tokenizer, examples, sampling, progress)
    verdicts = _verdicts(judge, examples, replies, progress)
    answers = [
        _ScoredReply(example, read, reply, _scores(example, reply), verdict)
        for example, read, reply, verdict in zip(examples, forced, replies, verdicts, strict=True)
    ]
    groups: dict[str, list[_ScoredReply]] = {}
    for answer in answers:
        groups.setdefault(answer.category, []).append(answer)
    return {
        "version": __version__,
        "sampling": sampling.model_dump(mode="json"),
        "signatures": signatures,
        "total": _metrics(answers),
        "categories": {name: _metrics(group) for name, group in sorted(groups.items())},
        "faults": dict(Counter(answer.reply.fault for answer in answers if answer.reply.fault).most_common()),
        "too_long": too_long,
        "judge": None
        if judge is None
        else judge_summary(judge, [verdict for verdict in verdicts if verdict]),
        "answers": [_row(answer) for answer in answers],
    }


def _scores(example: ChatExample, reply: ChatReply) -> dict[str, float]:
    """Compare a reply with the given answer, where that is text."""
    given, language = example.reference.content, example.language
    if not given:
        return {}
    package = text_metrics.package_rouge(reply.content, given)
    return {
        **text_metrics.rouge(reply.content, given, language),
        **{f"package_{name.replace('-', '_')}": values["f"] for name, values in package.items()},
        "exact_match": float(text_metrics.exact_match(reply.content, given, language)),
    }


def _calls_right(answer: _ScoredReply) -> bool:
    """Return whether a reply's calls are those of the given answer: names, arguments, order."""
    given = [(call.name, dict(call.arguments)) for call in answer.example.reference.tool_calls]
    return [(call["name"], call["arguments"]) for call in answer.reply.calls] == given


def _metrics(answers: Sequence[_ScoredReply]) -> dict[str, float | int | None]:
    """Aggregate the metrics over some answers; None where there is nothing to measure."""
    tokens = sum(answer.forced.tokens for answer in answers)
    loss = sum(answer.forced.nats for answer in answers) / tokens if tokens else None
    said = [answer.words for answer in answers]
    called = [answer for answer in answers if answer.example.reference.tool_calls]
    judged = [answer.verdict.score for answer in answers if answer.verdict and answer.verdict.score]
    return {
        "answers": len(answers),
        **_reference_metrics([answer for answer in answers if answer.scores]),
        "calls": len(called),
        "calls_right": fmean(map(_calls_right, called)) if called else None,
        "learnt_tokens": tokens,
        "token_accuracy": sum(answer.forced.right for answer in answers) / tokens if tokens else None,
        "loss": loss,
        "perplexity": math.exp(loss) if loss is not None and loss < 700 else None,
        "stop_rate": fmean(answer.reply.ended for answer in answers),
        "format_rate": fmean(answer.reply.fault is None for answer in answers),
        "tokens": fmean(answer.reply.tokens for answer in answers),
        "words": fmean(map(len, said)),
        "reference_words": fmean(len(words(answer.example.reference.content)) for answer in answers),
        "distinct_1": text_metrics.distinct(said, 1),
        "distinct_2": text_metrics.distinct(said, 2),
        "repeated_4grams": fmean(1 - text_metrics.distinct([one], 4) for one in said),
        "judge": fmean(judged) if judged else None,
    }


_PAIR_SCORES = (
    "rouge_1", "rouge_2", "rouge_l", "exact_match", "package_rouge_1", "package_rouge_2", "package_rouge_l",
)  # fmt: skip


def _reference_metrics(answers: Sequence[_ScoredReply]) -> dict[str, float | None]:
    """Aggregate the metrics over answers whose given ones are text."""
    if not answers:
        return dict.fromkeys(("bleu", "chrf", *_PAIR_SCORES))
    replies = [answer.reply.content for answer in answers]
    given = [answer.example.reference.content for answer in answers]
    means = {name: fmean(answer.scores[name] for answer in answers) for name in _PAIR_SCORES}
    return {"bleu": text_metrics.bleu(replies, given), "chrf": text_metrics.chrf(replies, given), **means}


def _row(answer: _ScoredReply) -> dict[str, Any]:
    """Return one answer as plain values."""
    example, reply = answer.example, answer.reply
    return {
        "place": example.conversation.location,
        "category": answer.category,
        "question": example.conversation.messages[-2].content,
        "reference": example.reference.content,
        "reference_calls": [
            {"name": call.name, "arguments": dict(call.arguments)} for call in example.reference.tool_calls
        ],
        **asdict(reply),
        "scores": answer.scores,
        "forced": asdict(answer.forced),
        "judge": None if answer.verdict is None else asdict(answer.verdict),
    }


def _verdicts(
    judge: JudgeConfig | None,
    examples: Sequence[ChatExample],
    replies: Sequence[ChatReply],
    progress: ChatProgress,
) -> Sequence[Verdict | None]:
    """Return the judge's verdict on each reply; None for each without a judge."""
    if judge is None:
        return [None] * len(examples)
    progress("judging", 0, len(examples))
    return judge_answers(
        judge, [_case(example, reply) for example, reply in zip(examples, replies, strict=True)]
    )


def _case(example: ChatExample, reply: ChatReply) -> JudgeCase:
    """Return a reply as the judge reads it."""
    *before, given = example.conversation.messages
    said = "\n".join(f"{message.role}: {message.content}" for message in before)
    calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in given.tool_calls]
    return JudgeCase(said, f"{given.content}\n{calls or ''}".strip(), reply.text)
