"""The examples that a fine-tuning run learns: held out, packed into rows, mixed with text of the base."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mm_rec.data.conversations.rendering import TokenizedExample
from mm_rec.data.mixture import Mixture
from mm_rec.data.packing import (
    MAX_CARRIED_SEQ_LEN,
    PackedConversations,
    choose_seq_len,
    conversation_batches,
    count_rows,
)
from mm_rec.data.prepare import PreparedCorpus
from mm_rec.data.row_sources import CorpusRows, IndexedRows, PackedSequences
from mm_rec.data.split import LARGE_VALIDATION_SHARE
from mm_rec.errors import ConfigError
from mm_rec.evaluation.finetune_eval import SamplePrompt
from mm_rec.models.presets import ModelSize
from mm_rec.models.traits import traits_of
from mm_rec.pipeline.resolve import batch_shape
from mm_rec.pipeline.sections import FinetuneSection
from mm_rec.training.interfaces import Batches, Reporter
from mm_rec.training.section import ResolvedTrainSection

_MOST_ROWS = 8  # of an example where nobody asked for more: it makes the steps of the whole run that long
_TEXT = "text of the base"  # in the mixture; no source of examples can have a name with spaces


@dataclass(frozen=True, slots=True)
class Examples:
    """Examples to train on by source, those held out, and questions to ask at each validation.

    `described` says what they are, a line each, for the model card.
    """

    train: Mapping[str, list[TokenizedExample]]
    held_out: list[TokenizedExample]
    questions: list[SamplePrompt]
    described: list[str]


@dataclass(frozen=True)
class FinetuneData:
    """The data of a fine-tuning run: examples, packed into rows, and perhaps text of the base beside them."""

    tokenizer: PreTrainedTokenizerBase
    section: FinetuneSection
    examples: Examples
    text: PreparedCorpus | None
    seq_len: int
    accumulation: int
    fold_rows: bool  # whether rows are folded where they can be

    @property
    def tokens(self) -> dict[str, int]:
        """Positions of an epoch of each source, padding included, so that epochs are counted as they are read."""
        positions = self.accumulation * self.seq_len  # of a column
        tokens = {name: len(one) * positions for name, one in self._packed.items() if self._weights[name]}
        if not tokens:
            raise ConfigError("every source of conversations weighs 0. Give one of them a weight")
        share = self.section.text_share
        return tokens if not share else {**tokens, _TEXT: round(sum(tokens.values()) * share / (1 - share))}

    def longest(self, settings: ResolvedTrainSection) -> int:
        """Tokens of the longest document that the model reads."""
        return max(self.longest_example, settings.seq_len if self.section.text_share else 0)

    @property
    def longest_example(self) -> int:
        """Tokens of the longest conversation."""
        return max(len(one.ids) for rendered in self.examples.train.values() for one in rendered)

    @property
    def carry_state(self) -> bool:
        """True where a conversation goes on from row to row."""
        return self.longest_example > self.seq_len

    def batches(self, settings: ResolvedTrainSection) -> Batches:
        """The run's batches from its first step on."""
        if settings.accumulation != self.accumulation:
            raise ConfigError(f"the rows were packed for steps of {self.accumulation} batches")
        return conversation_batches(
            {**self._packed, **self._text_rows(settings)},
            self._mixture(),
            settings.seq_len,
            settings.batch_size,
            settings.accumulation,
            settings.seed,
            pad_id(self.tokenizer),
            self.carry_state,
        )

    def packed_held_out(self) -> PackedConversations:
        """The held-out conversations, each whole in a row."""
        held_out = self.examples.held_out
        return PackedConversations(held_out, max(self.seq_len, *(len(one.ids) for one in held_out)))

    @property
    def _weights(self) -> dict[str, float]:
        return {source.name: source.weight for source in self.section.data}

    @functools.cached_property
    def _packed(self) -> dict[str, PackedConversations]:
        return {
            name: PackedConversations(rendered, self.seq_len, self.accumulation, self.fold_rows)
            for name, rendered in self.examples.train.items()
        }

    def _text_rows(self, settings: ResolvedTrainSection) -> dict[str, IndexedRows]:
        if not self.section.text_share or self.text is None:
            return {}
        return {_TEXT: CorpusRows(PackedSequences(self.text.train, settings.seq_len), settings.accumulation)}

    def _mixture(self) -> Mixture:
        """Sources by their rows times their weight; text by its share of all."""
        shares = {name: self._weights[name] * len(packed) for name, packed in self._packed.items()}
        if self.section.text_share:
            share = self.section.text_share
            shares[_TEXT] = sum(shares.values()) * share / (1 - share)
        return Mixture(list(shares), [(0, list(shares.values()))])

    def steps_per_epoch(self, settings: ResolvedTrainSection) -> float:
        """Steps in which all examples are read once."""
        return sum(len(one) for one in self._packed.values()) / settings.batch_size

    def describe(self, settings: ResolvedTrainSection, size: ModelSize) -> list[str]:
        """Describe the share of each source, and how full the rows are."""
        packed, rows = self._packed, settings.steps * settings.batch_size
        lines = []
        if len(packed) + bool(self.section.text_share) > 1:
            lines += [
                f"{name}: {share:.1%} of the rows" for name, share in self._mixture().shares(rows).items()
            ]
        waste = 1 - sum(one.tokens for one in packed.values()) / sum(
            len(one) * settings.accumulation * settings.seq_len for one in packed.values()
        )
        lines.append(f"rows of {settings.seq_len:,} tokens, {waste:.2%} of them padding")
        if (epoch := self.steps_per_epoch(settings)) < 1:
            lines.append(
                f"warning: a step reads {1 / epoch:.1f} times all there is. Less --accumulation or --batch-size gives "
                "more steps to learn in"
            )
        if self.carry_state:
            lines.append("conversations longer than a row go on in the next one, with the model's state")
        return lines

    def card_lines(self, settings: ResolvedTrainSection) -> list[str]:
        """The data in a few lines, for the model card."""
        lines = [
            f"{name}: {len(rendered):,} examples, {sum(len(one.ids) for one in rendered):,} tokens, "
            f"{sum(int(one.loss_mask.sum()) for one in rendered):,} of them learnt"
            for name, rendered in self.examples.train.items()
        ]
        lines += [f"held out: {len(self.examples.held_out):,} examples", *self.examples.described]
        if self.section.text_share:
            lines.append(f"{self.section.text_share:.0%} of the rows are text of the base")
        return lines

    def preview(self) -> dict[str, str]:
        """The first example of each source, with what is learnt of it in ⟦ ⟧."""
        return {
            name: masked_text(self.tokenizer, rendered[0]) for name, rendered in self.examples.train.items()
        }

    def record(self) -> dict[str, Any]:
        """Return the provenance of the data, for the run's lineage."""
        return {
            "conversations": {
                name: {
                    "files": [source.path for source in self.section.data if source.name == name],
                    "conversations": len(rendered),
                    "sha256": _digest(rendered),
                }
                for name, rendered in self.examples.train.items()
            },
            "held_out": {
                "conversations": len(self.examples.held_out),
                "sha256": _digest(self.examples.held_out),
            },
            "text": None if self.text is None else self.text.train.fingerprint,
        }


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills rows: padding, or else the end, or 0; it is masked, so any that the model has will do."""
    return next((one for one in (tokenizer.pad_token_id, tokenizer.eos_token_id) if one is not None), 0)


def plan_rows(
    section: FinetuneSection,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    examples: Examples,
    text: PreparedCorpus | None,
    reporter: Reporter,
) -> FinetuneData:
    """Choose the length of rows and how many a step reads, and say how much there is to learn."""
    lengths = [len(one.ids) for rendered in examples.train.values() for one in rendered]
    learnt = sum(int(one.loss_mask.sum()) for rendered in examples.train.values() for one in rendered)
    share = len(examples.held_out) / (len(lengths) + len(examples.held_out))
    reporter.say(
        f"{len(lengths):,} examples to train on, {len(examples.held_out):,} held out ({share:.1%}); "
        f"{sum(lengths):,} tokens, {learnt:,} of them learnt; the longest has {max(lengths):,}"
    )
    if share > max(LARGE_VALIDATION_SHARE, 2 * section.validation_fraction) and not section.validation:
        reporter.say(
            f"warning: {share:.0%} of the examples are held out, and {section.validation_fraction:.0%} was asked for: "
            "different ones are few. Give more, or name files to hold out with --validation"
        )
    held = [len(one.ids) for one in examples.held_out]
    seq_len = section.seq_len or _row_length(section, config, [*lengths, *held])
    return FinetuneData(
        tokenizer=tokenizer,
        section=section,
        examples=examples,
        text=text,
        seq_len=seq_len,
        accumulation=_accumulation(section, config, examples.train, seq_len, reporter),
        fold_rows=not traits_of(config).linear_time,
    )


def _row_length(section: FinetuneSection, config: PreTrainedConfig, lengths: Sequence[int]) -> int:
    """The row length that fits the conversations; rows of text must be within the model's context."""
    traits = traits_of(config)
    limit = traits.context_limit if section.text_share else None
    return choose_seq_len(lengths, traits.carries_state, limit)


def _accumulation(
    section: FinetuneSection,
    config: PreTrainedConfig,
    train: Mapping[str, list[TokenizedExample]],
    seq_len: int,
    reporter: Reporter,
) -> int:
    """Micro-batches of a step: as asked for or derived, and enough for the longest conversation to fit in a step."""
    rows = max(count_rows(one, seq_len) for rendered in train.values() for one in rendered)
    if rows == 1:
        return batch_shape(section, config.hidden_size, seq_len)[1]
    micro = section.batch_size or 1
    usual = batch_shape(section.replace(batch_size=None), config.hidden_size, seq_len)
    accumulation = max(section.accumulation or usual[0] * usual[1] // micro, rows)
    reporter.say(
        f"a conversation is spread over {rows} rows, which are read in one step: a step reads {accumulation} times "
        f"{micro} rows, {accumulation * micro * seq_len:,} tokens (--max-length makes it less)"
    )
    return accumulation


def longest_allowed(section: FinetuneSection, config: PreTrainedConfig) -> int | None:
    """The most tokens of an example: asked for, the model's limit, or none."""
    traits = traits_of(config)
    limit = traits.context_limit
    if section.max_length is not None and limit is not None and section.max_length > limit:
        raise ConfigError(
            f"--max-length {section.max_length:,} is over this model's context of {limit:,} tokens"
        )
    if traits.carries_state:
        return section.max_length or _MOST_ROWS * max(MAX_CARRIED_SEQ_LEN, section.seq_len or 0)
    # Without a state an example must stand whole in a row.
    limits = [one for one in (section.max_length, section.seq_len, limit) if one is not None]
    return min(limits, default=None)


def _digest(rendered: Sequence[TokenizedExample]) -> str:
    digest = hashlib.sha256()
    for one in rendered:
        digest.update(one.ids.tobytes())
        digest.update(one.loss_mask.tobytes())
    return digest.hexdigest()


def masked_text(tokenizer: PreTrainedTokenizerBase, rendered: TokenizedExample) -> str:
    """An example's text with what is learnt of it in ⟦ ⟧."""
    changes = np.flatnonzero(np.diff(rendered.loss_mask)) + 1
    pieces = []
    for ids, loss_mask in zip(
        np.split(rendered.ids, changes), np.split(rendered.loss_mask, changes), strict=True
    ):
        text = str(tokenizer.decode(ids))
        pieces.append(f"⟦{text}⟧" if loss_mask[0] else text)
    return "".join(pieces)
