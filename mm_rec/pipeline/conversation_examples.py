"""The conversations of a run: read, checked and held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mm_rec.data.conversations.conversation import Conversation
from mm_rec.data.conversations.dataset_reader import read_conversations
from mm_rec.data.conversations.issues import Fix, Issue, format_fixes, format_issues
from mm_rec.data.conversations.preflight import preflight
from mm_rec.data.conversations.rendering import TokenizedExample
from mm_rec.data.mixture import group_sources
from mm_rec.data.split import plan_split
from mm_rec.errors import ConfigError, DataError
from mm_rec.evaluation.finetune_eval import prompt_of_last_answer
from mm_rec.pipeline.finetune_data import Examples, longest_allowed
from mm_rec.pipeline.sections import FinetuneSection
from mm_rec.tokenizers.chat_template import known_chat_template
from mm_rec.training.interfaces import Reporter

Pairs = list[tuple[Conversation, TokenizedExample]]
Pair = TypeVar("Pair", bound=tuple[object, TokenizedExample])  # what was read, and what the model reads


def read_conversation_examples(
    section: FinetuneSection, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, reporter: Reporter
) -> Examples:
    """Read, check and split everything; raises DataError that lists every problem once, with nothing trained."""
    if not section.data:
        raise ConfigError(
            "no conversations to train on: name files, for example `mmrec sft chats.jsonl --from RUN`"
        )
    group_sources(section.data)  # one name has one weight
    reader = _Reader(section, tokenizer, longest_allowed(section, config))
    train: dict[str, Pairs] = {}
    for source in section.data:
        train.setdefault(source.name, []).extend(reader.read([source.path], source.format, source.fields))
    first = section.data[0]
    held = reader.read(section.validation, first.format, first.fields) if section.validation else []
    reader.finish(reporter)
    train, held = train_val_split(train, held, section)
    layout = known_chat_template(tokenizer)
    return Examples(
        train={name: [one for _, one in pairs] for name, pairs in train.items()},
        held_out=[one for _, one in held],
        questions=[
            prompt_of_last_answer(tokenizer, conversation) for conversation, _ in held[: section.samples]
        ],
        described=[f"chat layout: {layout.name if layout else 'the base model’s own'}"],
    )


def train_val_split(
    train: dict[str, list[Pair]], held: list[Pair], section: FinetuneSection
) -> tuple[dict[str, list[Pair]], list[Pair]]:
    """Training by source, and what is held out: given files, or a share by the hash of the text."""
    if section.validation:
        texts = {one.text for _, one in held}
        train = {name: [pair for pair in pairs if pair[1].text not in texts] for name, pairs in train.items()}
    else:
        different = {one.text for pairs in train.values() for _, one in pairs}
        if len(different) < 2:
            raise DataError(
                f"{len(different)} examples are not enough to hold one out and measure by it. Give more"
            )
        train, held = _held_out(train, section.validation_fraction)
    for name, pairs in train.items():
        if not pairs:
            raise DataError(f"no example of {name!r} is left to train on. Give more, or hold out fewer")
    if not held:
        raise DataError("no example is left to validate on. Name other --validation files")
    return train, held


class _Reader:
    """Reads sources one after the other and gathers everything that is wrong with them."""

    def __init__(
        self, section: FinetuneSection, tokenizer: PreTrainedTokenizerBase, context: int | None
    ) -> None:
        self.section, self.tokenizer, self.context = section, tokenizer, context
        self.issues: list[Issue] = []
        self.fixes: list[Fix] = []

    def read(
        self, paths: Sequence[str], format_name: str | None = None, fields: Mapping[str, str] | None = None
    ) -> Pairs:
        """The conversations of some paths that can be learnt from."""
        section = self.section
        found = read_conversations(
            paths,
            format_name=format_name,
            fields=fields,
            fix=section.fix,
            special_tokens=self.tokenizer.all_special_tokens,
        )
        checked = preflight(
            self.tokenizer, found.conversations, section.train_on, self.context, section.too_long
        )
        self.issues += found.issues
        self.fixes += [*found.fixes, *checked.fixes]
        if section.fix:
            self.fixes += [Fix(issue.location, f"left out: {issue.message}") for issue in checked.issues]
        else:
            self.issues += checked.issues
        return list(zip(checked.conversations, checked.rendered, strict=True))

    def finish(self, reporter: Reporter) -> None:
        """Say what was mended; raise DataError where anything is wrong."""
        if self.fixes:
            reporter.say(format_fixes(self.fixes))
        if self.issues:
            raise DataError(
                f"nothing was trained: there are {len(self.issues):,} problems in the conversations.\n"
                + format_issues(self.issues)
            )


def _held_out(train: dict[str, list[Pair]], fraction: float) -> tuple[dict[str, list[Pair]], list[Pair]]:
    """Hold out conversations by the hash of their text, over all sources, so that the same one is on one side."""
    split = plan_split((one.text for pairs in train.values() for _, one in pairs), fraction)
    both: dict[bool, dict[str, list[Pair]]] = {
        side: {
            name: [pair for pair in pairs if split.is_validation(pair[1].text) == side]
            for name, pairs in train.items()
        }
        for side in (False, True)
    }
    return both[False], [pair for pairs in both[True].values() for pair in pairs]
