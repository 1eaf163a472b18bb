"""The conversations of a run: read, checked, held out, packed; and the text that keeps its base in memory."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mm_rec.config import load_yaml
from mm_rec.data.batches import PackedSequences
from mm_rec.data.conversations.conversation import Conversation
from mm_rec.data.conversations.faults import Fault, Fix, describe, describe_fixes
from mm_rec.data.conversations.packing import (
    LONGEST_ROW,
    ConversationBatches,
    PackedConversations,
    RowSource,
    TextRows,
    row_length,
    rows_needed,
)
from mm_rec.data.conversations.preflight import preflight
from mm_rec.data.conversations.reading import read_conversations
from mm_rec.data.conversations.rendering import Rendered
from mm_rec.data.mixing import Mixture, group_sources
from mm_rec.data.prepare import PreparedCorpus
from mm_rec.data.split import plan_split
from mm_rec.errors import ConfigError, DataError
from mm_rec.models.mmrec.configuration_mmrec import MMRecConfig
from mm_rec.models.presets import Size
from mm_rec.pipeline.derive import batch_shape
from mm_rec.pipeline.recipe import SftSection
from mm_rec.runs.directory import RECIPE
from mm_rec.tokenizers.chat_template import layout_of
from mm_rec.training.config import TrainingConfig
from mm_rec.training.loop import Batches, Reporter

_MOST_ROWS = 8  # of a conversation where nobody asked for more: it makes the steps of the whole run that long
_TEXT = "text of the base"  # in the mixture; no source of conversations can have a name with spaces


@dataclass(frozen=True)
class RunConversations:
    """What a fine-tuning run reads: rendered conversations by source, those held out, and perhaps text of the base."""

    tokenizer: PreTrainedTokenizerBase
    section: SftSection
    train: Mapping[str, list[Rendered]]
    held_out: list[Rendered]
    held_out_conversations: list[Conversation]
    text: PreparedCorpus | None
    seq_len: int
    accumulation: int

    @property
    def tokens(self) -> dict[str, int]:
        """Positions of an epoch of each source, padding included, so that epochs are counted as they are read."""
        positions = self.accumulation * self.seq_len  # of a column
        tokens = {name: len(one) * positions for name, one in self._packed.items() if self._weights[name]}
        if not tokens:
            raise ConfigError("every source of conversations weighs 0. Give one of them a weight")
        share = self.section.text_share
        return tokens if not share else {**tokens, _TEXT: round(sum(tokens.values()) * share / (1 - share))}

    def longest(self, config: TrainingConfig) -> int:
        """Tokens of the longest document that the model reads."""
        return max(self.longest_conversation, config.seq_len if self.section.text_share else 0)

    @property
    def longest_conversation(self) -> int:
        """Tokens of the longest conversation."""
        return max(len(one.ids) for rendered in self.train.values() for one in rendered)

    @property
    def carries(self) -> bool:
        """Whether a conversation goes on from row to row."""
        return self.longest_conversation > self.seq_len

    def batches(self, config: TrainingConfig) -> Batches:
        """The run's batches from its first step on."""
        if config.accumulation != self.accumulation:
            raise ConfigError(f"the rows were packed for steps of {self.accumulation} batches")
        return ConversationBatches(
            {**self._packed, **self._text_rows(config)},
            self._mixture(config),
            config.seq_len,
            config.micro_batch,
            config.accumulation,
            config.seed,
            pad_id(self.tokenizer),
            self.carries,
        )

    def packed_held_out(self) -> PackedConversations:
        """The held-out conversations, each whole in a row."""
        return PackedConversations(self.held_out, max(self.seq_len, *(len(one.ids) for one in self.held_out)))

    @property
    def _weights(self) -> dict[str, float]:
        return {source.name: source.weight for source in self.section.data}

    @functools.cached_property
    def _packed(self) -> dict[str, PackedConversations]:
        return {
            name: PackedConversations(rendered, self.seq_len, self.accumulation)
            for name, rendered in self.train.items()
        }

    def _text_rows(self, config: TrainingConfig) -> dict[str, RowSource]:
        if not self.section.text_share or self.text is None:
            return {}
        return {_TEXT: TextRows(PackedSequences(self.text.train, config.seq_len), config.accumulation)}

    def _mixture(self, config: TrainingConfig) -> Mixture:
        """Sources by their rows times their weight; text by its share of all."""
        shares = {name: self._weights[name] * len(packed) for name, packed in self._packed.items()}
        if self.section.text_share:
            share = self.section.text_share
            shares[_TEXT] = sum(shares.values()) * share / (1 - share)
        return Mixture(list(shares), [(0, list(shares.values()))])

    def describe(self, config: TrainingConfig, size: Size) -> list[str]:
        """What is read of each source, and how full the rows are."""
        packed, rows = self._packed, config.steps * config.micro_batch
        lines = []
        if len(packed) + bool(self.section.text_share) > 1:
            lines += [
                f"{name}: {share:.1%} of the rows"
                for name, share in self._mixture(config).shares(rows).items()
            ]
        waste = 1 - sum(one.tokens for one in packed.values()) / sum(
            len(one) * config.accumulation * config.seq_len for one in packed.values()
        )
        lines.append(f"rows of {config.seq_len:,} tokens, {waste:.2%} of them padding")
        if self.carries:
            lines.append("conversations longer than a row go on in the next one, with the model's state")
        return lines

    def card_lines(self, config: TrainingConfig) -> list[str]:
        """The data in a few lines, for the model card."""
        layout = layout_of(self.tokenizer)
        lines = [
            f"{name}: {len(rendered):,} conversations, {sum(len(one.ids) for one in rendered):,} tokens, "
            f"{sum(int(one.learnt.sum()) for one in rendered):,} of them learnt"
            for name, rendered in self.train.items()
        ]
        lines.append(f"held out: {len(self.held_out):,} conversations")
        lines.append(f"chat layout: {layout.name if layout else 'the base model’s own'}")
        if self.section.text_share:
            lines.append(f"{self.section.text_share:.0%} of the rows are text of the base")
        return lines

    def record(self) -> dict[str, Any]:
        """Where the data came from, for the run's lineage."""
        return {
            "conversations": {
                name: {
                    "files": [source.path for source in self.section.data if source.name == name],
                    "conversations": len(rendered),
                    "sha256": _digest(rendered),
                }
                for name, rendered in self.train.items()
            },
            "held_out": {"conversations": len(self.held_out), "sha256": _digest(self.held_out)},
            "text": None if self.text is None else self.text.train.fingerprint,
        }


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills rows: that of padding, which every tokenizer that was prepared for chat has."""
    assert tokenizer.pad_token_id is not None
    return int(tokenizer.pad_token_id)


def read_run_conversations(
    section: SftSection,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    text: PreparedCorpus | None,
    reporter: Reporter,
) -> RunConversations:
    """Read, check and split everything; raises DataError that lists every problem once, with nothing trained."""
    if not section.data:
        raise ConfigError(
            "no conversations to train on: name files, for example `mmrec sft chats.jsonl --from RUN`"
        )
    group_sources(section.data)  # one name has one weight
    reader = _Reader(section, tokenizer, _context(section, config))
    train: dict[str, Pairs] = {}
    for source in section.data:
        train.setdefault(source.name, []).extend(reader.read([source.path], source.format, source.fields))
    first = section.data[0]
    held = reader.read(section.validation, first.format, first.fields) if section.validation else []
    reader.finish(reporter)
    train, held = _sides(train, held, section)
    lengths = [len(one.ids) for pairs in train.values() for _, one in pairs]
    learnt = sum(int(one.learnt.sum()) for pairs in train.values() for _, one in pairs)
    reporter.say(
        f"{len(lengths):,} conversations to train on, {len(held):,} held out; {sum(lengths):,} tokens, "
        f"{learnt:,} of them learnt; the longest has {max(lengths):,}"
    )
    rendered = {name: [one for _, one in pairs] for name, pairs in train.items()}
    seq_len = section.seq_len or _row_length(section, config, [*lengths, *(len(one.ids) for _, one in held)])
    return RunConversations(
        tokenizer=tokenizer,
        section=section,
        train=rendered,
        held_out=[one for _, one in held],
        held_out_conversations=[conversation for conversation, _ in held],
        text=text,
        seq_len=seq_len,
        accumulation=_accumulation(section, config, rendered, seq_len, reporter),
    )


def _sides(train: dict[str, Pairs], held: Pairs, section: SftSection) -> tuple[dict[str, Pairs], Pairs]:
    """Training by source, and what is held out: given files, or a share by the hash of the text."""
    if section.validation:
        texts = {one.text for _, one in held}
        train = {name: [pair for pair in pairs if pair[1].text not in texts] for name, pairs in train.items()}
    else:
        different = {one.text for pairs in train.values() for _, one in pairs}
        if len(different) < 2:
            raise DataError(
                f"{len(different)} conversations are not enough to hold one out and measure by it. Give more"
            )
        train, held = _held_out(train, section.validation_fraction)
    for name, pairs in train.items():
        if not pairs:
            raise DataError(f"no conversation of {name!r} is left to train on. Give more, or hold out fewer")
    if not held:
        raise DataError("no conversation is left to validate on. Name other --validation files")
    return train, held


def _row_length(section: SftSection, config: PreTrainedConfig, lengths: Sequence[int]) -> int:
    """The row length that fits the conversations; rows of text must be within the model's context."""
    limit = getattr(config, "max_position_embeddings", None) if section.text_share else None
    return row_length(lengths, isinstance(config, MMRecConfig), limit)


def _accumulation(
    section: SftSection,
    config: PreTrainedConfig,
    train: Mapping[str, list[Rendered]],
    seq_len: int,
    reporter: Reporter,
) -> int:
    """Micro-batches of a step: as asked for or derived, and enough for the longest conversation to fit in a step."""
    rows = max(rows_needed(one, seq_len) for rendered in train.values() for one in rendered)
    if rows == 1:
        return batch_shape(section, config.hidden_size, seq_len)[1]
    micro = section.batch_size or 1
    usual = batch_shape(section.changed(batch_size=None), config.hidden_size, seq_len)
    accumulation = max(section.accumulation or usual[0] * usual[1] // micro, rows)
    reporter.say(
        f"a conversation is spread over {rows} rows, which are read in one step: a step reads {accumulation} times "
        f"{micro} rows, {accumulation * micro * seq_len:,} tokens (--max-length makes it less)"
    )
    return accumulation


Pairs = list[tuple[Conversation, Rendered]]


class _Reader:
    """Reads sources one after the other and gathers everything that is wrong with them."""

    def __init__(self, section: SftSection, tokenizer: PreTrainedTokenizerBase, context: int | None) -> None:
        self.section, self.tokenizer, self.context = section, tokenizer, context
        self.faults: list[Fault] = []
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
        self.faults += found.problems
        self.fixes += [*found.fixes, *checked.fixes]
        if section.fix:
            self.fixes += [Fix(fault.place, f"left out: {fault.message}") for fault in checked.faults]
        else:
            self.faults += checked.faults
        return list(zip(checked.conversations, checked.rendered, strict=True))

    def finish(self, reporter: Reporter) -> None:
        """Say what was mended; raise DataError where anything is wrong."""
        if self.fixes:
            reporter.say(describe_fixes(self.fixes))
        if self.faults:
            raise DataError(
                f"nothing was trained: there are {len(self.faults):,} problems in the conversations.\n"
                + describe(self.faults)
            )


def _context(section: SftSection, config: PreTrainedConfig) -> int | None:
    """The most tokens of a conversation: asked for, the model's limit, or none."""
    limit: int | None = getattr(config, "max_position_embeddings", None)
    if section.max_length is not None and limit is not None and section.max_length > limit:
        raise ConfigError(
            f"--max-length {section.max_length:,} is over this model's context of {limit:,} tokens"
        )
    if isinstance(config, MMRecConfig):
        return section.max_length or _MOST_ROWS * max(LONGEST_ROW, section.seq_len or 0)
    # Without a state a conversation must stand whole in a row.
    limits = [one for one in (section.max_length, section.seq_len, limit) if one is not None]
    return min(limits, default=None)


def _held_out(train: dict[str, Pairs], fraction: float) -> tuple[dict[str, Pairs], Pairs]:
    """Hold out conversations by the hash of their text, over all sources, so that the same one is on one side."""
    split = plan_split((one.text for pairs in train.values() for _, one in pairs), fraction)
    sides: dict[bool, dict[str, Pairs]] = {
        side: {
            name: [pair for pair in pairs if split.is_validation(pair[1].text) == side]
            for name, pairs in train.items()
        }
        for side in (False, True)
    }
    return sides[False], [pair for pairs in sides[True].values() for pair in pairs]


def _digest(rendered: Sequence[Rendered]) -> str:
    digest = hashlib.sha256()
    for one in rendered:
        digest.update(one.ids.tobytes())
        digest.update(one.learnt.tobytes())
    return digest.hexdigest()


def base_text(start_from: str) -> Path | None:
    """The prepared text of the run that a model came from, also by way of fine-tuning; None where it is not there."""
    seen = set()
    while start_from not in seen:
        seen.add(start_from)
        run = _run_of(Path(start_from))
        if (run / "data" / "split.json").is_file():
            return run / "data"
        values = load_yaml(run / RECIPE) if (run / RECIPE).is_file() else {}
        before = [(values.get(name) or {}).get("start_from") for name in ("instruct", "sft")]
        start_from = next((name for name in before if name), start_from)
    return None


def _run_of(path: Path) -> Path:
    """The run that a path is or lies in: its final, its best, or the model of one of its checkpoints."""
    if path.name in ("final", "best"):
        return path.parent
    return path.parents[2] if path.name == "model" and path.parent.parent.name == "checkpoints" else path
