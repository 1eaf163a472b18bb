"""Constrained decoding: whatever a model's logits are, what comes out parses and follows its schema."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from serving.parsing import parse_in_pieces
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from waiting import little_work

from mm_rec.data.conversations.conversation import ChatMessage, Conversation, ToolCall
from mm_rec.data.conversations.rendering import conversation_text, prompt_text
from mm_rec.errors import ConfigError, TokenizerError
from mm_rec.inference.grammar import unique_items
from mm_rec.inference.grammar.automaton import Configurations, PushdownAutomaton
from mm_rec.inference.grammar.checked_schema import checked_schema
from mm_rec.inference.grammar.compiler import GrammarCompiler
from mm_rec.inference.grammar.constraint import GrammarConstraint
from mm_rec.inference.grammar.lark_automaton import build_automaton
from mm_rec.inference.grammar.lark_grammar import MAX_TOOL_CALLS, callable_functions
from mm_rec.inference.grammar.schema_automaton import SchemaCompiler
from mm_rec.inference.grammar.token_bytes import token_bytes
from mm_rec.inference.grammar.unique_items import UniqueItems
from mm_rec.inference.grammar.vocabulary import MAX_DIGITS
from mm_rec.inference.sampler import Sampler, SamplingParams
from mm_rec.serving.protocol.tool_calls import CallsOrJsonParser
from mm_rec.tokenizers.assistant_format import assistant_format
from mm_rec.tokenizers.chat_template import prepare_for_chat
from mm_rec.tokenizers.openai_tokenizer import simple_tokenizer

SEEDS = range(4)
BUDGET = 200  # tokens
TEXTS = (
    "Küçük çocuk ırmağın kıyısında; İSTANBUL, ığdır, ŞÜPHE. Kâğıt, rüzgâr.",
    "She said: “it's 3,141.59 — no?”\n\tAnd then\t\tnothing.\r\n\n\n   Four   spaces    ",
    "Yıldızlar ✨ ve 👩‍👩‍👧 aile 🇹🇷, 日本語 – été; <|not a token|> \\n \u0000\u007f",
    '{"ad": "Ayşe", "yaş": 12, "liste": [1, 2.5e-3, null, true]}',
)
MODELS = ("sentencepiece", "simple", "llama3")
LAYOUT_NAMES = ("default", "chatml", "llama3")


def like_llama3() -> PreTrainedTokenizerFast:
    """A byte-level BPE with LLaMA 3's way of cutting text, trained on the texts above."""
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    pattern = words + r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    backend = Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, special_tokens=["<|begin_of_text|>"], show_progress=False
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin_of_text|>", clean_up_tokenization_spaces=False
    )


@pytest.fixture
def build(tokenizer: PreTrainedTokenizerBase) -> Callable[..., PreTrainedTokenizerBase]:
    def make(kind: str, layout: str = "default") -> PreTrainedTokenizerBase:
        made = {
            "sentencepiece": lambda: tokenizer,
            "simple": lambda: simple_tokenizer(2000),
            "llama3": like_llama3,
        }[kind]()
        prepare_for_chat(made, layout)
        return made

    return make


@pytest.fixture(params=MODELS)
def each(
    request: pytest.FixtureRequest, build: Callable[..., PreTrainedTokenizerBase]
) -> PreTrainedTokenizerBase:
    """A tokenizer of each kind."""
    return build(request.param)


@pytest.fixture(scope="module")
def grammars() -> GrammarCompiler:
    return GrammarCompiler(simple_tokenizer(2000))


def parse_reply(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[str, list[dict[str, Any]]]:
    reply = assistant_format(tokenizer).parse(text)
    return reply.content, list(reply.calls)


def write(
    constraint: GrammarConstraint,
    eos: int,
    seed: int,
    budget: int = BUDGET,
    logits: Callable[[int], Tensor] | None = None,
) -> list[int]:
    """What a model writes whose logits are random (or given, by step), as the engine asks for it."""
    sampler = Sampler(SamplingParams(seed=seed, temperature=1.0, top_p=1.0))
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    while not constraint.is_stopped and len(ids) < budget:
        left, allowed = budget - len(ids), constraint.token_mask()
        scores = logits(len(ids)) if logits else torch.randn(len(allowed), generator=generator) * 3
        token = constraint.sample(scores, left, sampler.sample)
        if token == eos:
            assert constraint.is_accepting
            break
        constraint.accept_token(token)
        ids.append(token)
    return ids


def answer(
    tokenizer: PreTrainedTokenizerBase, constraint: GrammarConstraint, seed: int, **options: Any
) -> str:
    """The text of a whole answer; that it was finished is part of what is proven."""
    ids = write(constraint, int(tokenizer.eos_token_id or 0), seed, **options)
    assert constraint.is_accepting
    text = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    written = token_bytes(tokenizer)
    assert (
        tokenizer.decode(ids, skip_special_tokens=True) == b"".join(written[token] for token in ids).decode()
    )
    return text


# What tokens stand for.


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_tokens_together_are_those_of_the_text(each: PreTrainedTokenizerBase, text: str) -> None:
    written = token_bytes(each)
    assert b"".join(written[token] for token in each.encode(text, add_special_tokens=False)) == text.encode()


@pytest.mark.parametrize("kind", MODELS)
def test_bytes_of_tokens_together_are_those_of_real_text(
    build: Callable[..., PreTrainedTokenizerBase], real_data: Callable[[str], Path], kind: str
) -> None:
    tokenizer = build(kind)
    written = token_bytes(tokenizer)
    rows = json.loads(real_data("instruct/tr_nutuk_qa_600.json").read_text(encoding="utf-8"))
    english = real_data("instruct/self_instruct_seed_tasks.jsonl").read_text(encoding="utf-8")
    for text in (json.dumps(rows, ensure_ascii=False, indent=1)[:200_000], english):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert b"".join(written[token] for token in ids) == text.encode()


def test_every_token_alone_and_in_the_middle_is_decoded_to_its_bytes(each: PreTrainedTokenizerBase) -> None:
    (letter,) = each.encode("a", add_special_tokens=False)
    special = set(each.all_special_ids)
    for token, text in enumerate(token_bytes(each)):
        if token in special:
            assert text == b""
        elif text:
            expected = (b"a" + text + b"a").decode(errors="replace")
            assert str(each.decode([letter, token, letter])).replace("\ufffd", "") == expected.replace(
                "\ufffd", ""
            )
            assert str(each.decode([token])).replace("\ufffd", "") == text.decode(errors="replace").replace(
                "\ufffd", ""
            )


def test_a_mark_that_is_a_space_elsewhere_is_written_by_its_bytes(tokenizer: PreTrainedTokenizerBase) -> None:
    grammars = GrammarCompiler(tokenizer)
    for seed in SEEDS:
        assert json.loads(answer(tokenizer, grammars.json_schema({"enum": ["▁ a", "a▁"]}), seed)) in (
            "▁ a",
            "a▁",
        )


# JSON and schemas.

PERSON = {
    "type": "object",
    "properties": {
        "adı": {"type": "string", "maxLength": 12},
        "yaş": {"type": "integer", "minimum": 0, "maximum": 130},
        "şehir": {"enum": ["İstanbul", "ığdır", "Muş", "Ağrı", 'tırnak " ve \\']},
        "boy": {"type": "number", "minimum": 0.5, "exclusiveMaximum": 2.5},
        "adres": {
            "type": "object",
            "properties": {"kapı": {"type": "integer"}, "kat": {"type": ["integer", "null"]}},
            "required": ["kapı", "kat"],
            "additionalProperties": False,
        },
    },
    "required": ["adı", "yaş", "şehir", "adres"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "düğüm": {
            "type": "object",
            "properties": {
                "değer": {"type": "integer"},
                "dallar": {"type": "array", "items": {"$ref": "#/$defs/düğüm"}, "maxItems": 2},
            },
            "required": ["değer", "dallar"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/düğüm",
}
SCHEMAS: dict[str, Any] = {
    "nested object": PERSON,
    "recursive": TREE,
    "array": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 4},
    "prefix": {
        "type": "array",
        "prefixItems": [{"type": "boolean"}, {"const": "ş"}],
        "items": False,
        "minItems": 2,
    },
    "const": {"const": {"ı": [1, "İ"]}},
    "any of": {
        "anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[ığüşöç]{3}-\\d{2}$"}, {"const": 7}]
    },
    "e-mail": {"type": "string", "pattern": "^[a-z]+@[a-z]+\\.tr$"},
    "format": {
        "type": "object",
        "properties": {"d": {"type": "string", "format": "date"}},
        "required": ["d"],
    },
    "long string": {"type": "string", "minLength": 40, "maxLength": 60},
    "range": {"type": "integer", "minimum": -17, "exclusiveMaximum": 23, "multipleOf": 5},
    "optional": {
        "type": "object",
        "properties": {name: {"type": "boolean"} for name in ("bir", "iki", "üç", "dört")},
        "additionalProperties": False,
    },
    "map": {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1},
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"required": ["b"]},
        ]
    },
    "empty object": {"type": "object", "properties": {}, "additionalProperties": False},
    "anything": {},
    "strings": {"type": "array", "items": {"type": "string"}, "minItems": 3},
    "e-mail format": {"type": "string", "format": "email", "maxLength": 30},
    "no brace": {"type": "string", "pattern": "^[^}]*x$", "maxLength": 50},
    "no bracket": {"type": "array", "items": {"type": "string", "pattern": "^[^\\]]*x$", "maxLength": 50}},
    "a note": {
        "type": "object",
        "properties": {"a": {"type": "string", "format": "password", "maxLength": 9}},
    },
    "record": {
        "type": "object",
        "propertyNames": {"type": "string"},
        "additionalProperties": {"type": "integer"},
    },
    "record of names": {
        "type": "object",
        "propertyNames": {"enum": ["a", "b.c", "ş"]},
        "additionalProperties": {"type": "integer"},
        "minProperties": 1,
    },
    "far bounds": {
        "type": "array",
        "prefixItems": [
            {"type": "integer", "minimum": -(2**64), "exclusiveMaximum": -(2**63)},
            {"type": "integer", "minimum": 2**64, "maximum": 2**64 + 9},
            {"type": "number", "minimum": -1e30, "maximum": -1e29},
        ],
        "minItems": 3,
        "items": False,
    },
    "set": {"type": "array", "uniqueItems": True, "items": {"enum": ["a", "ab", 1]}, "minItems": 2},
    "sets in sets": {
        "type": "object",
        "properties": {
            "a": {"type": "array", "items": {"type": "boolean"}, "minItems": 4, "maxItems": 4},
            "b": {
                "type": "array",
                "items": {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 0, "maximum": 3},
                    "uniqueItems": True,
                },
                "uniqueItems": True,
            },
        },
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "multiples": {"type": "integer", "minimum": 100, "multipleOf": 7},
    "numbers between": {"type": "number", "minimum": 1000, "maximum": 2000.5},
    "constants": {"enum": [1e20, 2.0, "ğ\u2028\x7f/"]},
    "what the schema says of white space": {
        "type": "object",
        "x-guidance": {"whitespace_pattern": "\\s+", "lenient": True},
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_logits_follow_the_schema(each: PreTrainedTokenizerBase, name: str) -> None:
    grammars = GrammarCompiler(each)
    for seed in SEEDS:
        text = answer(each, grammars.json_schema(SCHEMAS[name]), seed)
        value = json.loads(text)
        jsonschema.validate(value, SCHEMAS[name], cls=jsonschema.Draft202012Validator)
        assert text.removesuffix("\n").count("\n") == 0
    assert text.endswith("\n")  # as the default layout ends what the assistant says


def test_random_logits_make_an_object(each: PreTrainedTokenizerBase) -> None:
    grammars = GrammarCompiler(each)
    assert all(isinstance(json.loads(answer(each, grammars.json_object(), seed)), dict) for seed in SEEDS)


def test_a_model_that_writes_one_token_for_ever_is_still_finished(grammars: GrammarCompiler) -> None:
    tokenizer = simple_tokenizer(2000)
    for favourite in ("a", "9", " ", '"', "[", "{", ",", "0"):
        token = grammars.bytes.index(favourite.encode())
        stubborn = torch.zeros(len(tokenizer)).index_fill(0, torch.tensor([token]), 50.0)
        for schema in (SCHEMAS["strings"], SCHEMAS["array"], TREE, {"type": "object"}):
            text = answer(tokenizer, grammars.json_schema(schema), 0, logits=lambda step, row=stubborn: row)
            jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)


def test_numbers_have_an_end_without_a_budget(grammars: GrammarCompiler) -> None:
    tokenizer = simple_tokenizer(2000)
    (nine,) = tokenizer.encode("9", add_special_tokens=False)
    constraint = grammars.json_schema(
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    )
    for token in tokenizer.encode('{"a": ', add_special_tokens=False):
        constraint.accept_token(token)
    for _ in range(MAX_DIGITS):
        assert constraint.token_mask()[nine]
        constraint.accept_token(nine)
    assert not constraint.token_mask()[nine]
    assert constraint.token_mask().any()


def test_a_pattern_may_ask_for_a_longer_number(grammars: GrammarCompiler) -> None:
    schema = {"type": "string", "pattern": f"^[0-9]{{{MAX_DIGITS + 9}}}$"}
    text = json.loads(answer(simple_tokenizer(2000), grammars.json_schema(schema), 0))
    assert text.isdigit() and len(text) == MAX_DIGITS + 9


@pytest.mark.parametrize("schema", [PERSON, SCHEMAS["strings"], SCHEMAS["all of"], {"type": "object"}])
def test_a_budget_that_an_ending_fits_is_always_enough(
    grammars: GrammarCompiler, schema: dict[str, Any]
) -> None:
    """Also where one token asks for many more: the opening of an object whose properties must all come."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": schema}, "b": schema},
        "additionalProperties": False,
    }
    for budget in range(3, 150, 7):
        constraint = grammars.json_schema(schema)
        ids = write(constraint, grammars.eos, budget, budget)
        assert constraint.is_accepting
        jsonschema.validate(
            json.loads(grammars.decode_bytes(ids)), schema, cls=jsonschema.Draft202012Validator
        )


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_no_call_is_begun_that_cannot_be_finished(
    build: Callable[..., PreTrainedTokenizerBase], layout: str
) -> None:
    """A model that wants nothing but calls, with room for a few."""
    tokenizer = build("simple", layout)
    grammars = GrammarCompiler(tokenizer)
    wish = rendered(tokenizer, "", [{"name": "saat", "arguments": {"a": "b" * 20}}] * MAX_TOOL_CALLS)
    ids = tokenizer.encode(wish, add_special_tokens=False)

    def eager(step: int) -> Tensor:
        return torch.zeros(grammars.vocab_size).index_fill(0, torch.tensor(ids[step]), 50.0)

    for choice, least in (("auto", 0), ("required", 1)):
        for budget in range(100, 220, 5):
            _, calls = parse_reply(
                tokenizer,
                answer(tokenizer, grammars.tool_calls(TOOLS, choice), 0, budget=budget, logits=eager),
            )
            assert least <= len(calls) <= budget / 30
            check_calls(TOOLS, calls)


@pytest.mark.parametrize(
    "pattern", [r"^.*\.pdf$", r"^.+@.+\.com$", r"^.+ (Caddesi|Sokağı)$", r"foo.*bar.*ş$", r"^(a|b)*\"\d$"]
)
def test_a_pattern_that_ends_in_a_literal_is_brought_to_its_end(
    grammars: GrammarCompiler, pattern: str
) -> None:
    schema = {"type": "array", "items": {"type": "string", "pattern": pattern}, "minItems": 2}
    for seed in SEEDS:
        text = answer(simple_tokenizer(2000), grammars.json_schema(schema), seed, budget=80)
        jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("schema", "most"),
    [
        ({"type": "string", "pattern": r"^[^@]+@[^@]+\.[a-z]+$"}, 8),
        ({"type": "string", "format": "email"}, 6),
        ({"type": "string", "pattern": "^[^}]*x$"}, 4),
        ({"type": "string", "pattern": "^.{300}$"}, 303),
        (SCHEMAS["strings"], 14),
        (SCHEMAS["set"], 9),
        (TREE, 29),
    ],
)
def test_the_shortest_ending_is_known(grammars: GrammarCompiler, schema: dict[str, Any], most: int) -> None:
    """With room for just that, all is whole, whatever the model would like."""
    for seed in SEEDS:
        text = answer(simple_tokenizer(2000), grammars.json_schema(schema), seed, budget=most)
        jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)


def test_a_token_costs_no_way_through_the_grammar(
    grammars: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an ending of 3,000 characters nothing is looked at again but what a token changes."""
    advance, steps = PushdownAutomaton.advance, [0]

    def counted(self: PushdownAutomaton, place: Configurations, symbol: int) -> Configurations:
        steps[0] += 1
        return advance(self, place, symbol)

    monkeypatch.setattr(PushdownAutomaton, "advance", counted)
    constraint = grammars.json_schema({"type": "string", "pattern": "^.{3000}$"})
    assert len(constraint.token_mask()) and steps[0] == 0
    for budget in (3100, 20_000):
        steps[0] = 0
        ids = write(grammars.json_schema({"type": "string", "pattern": "^.{3000}$"}), grammars.eos, 0, budget)
        considered = 16 * len(ids) * max(map(len, grammars.bytes))
        assert 3002 <= len(grammars.decode_bytes(ids).decode().removesuffix("\n")) <= steps[0] <= considered


def test_a_grammar_is_compiled_once(grammars: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def build(grammar: str, check: Callable[[], None]) -> PushdownAutomaton:
        built.append(grammar)
        return build_automaton(grammar, check)

    monkeypatch.setattr("mm_rec.inference.grammar.compiler.build_automaton", build)
    schema = {"enum": ["bir kez"]}
    first, second = grammars.json_schema(schema), grammars.json_schema(dict(schema))
    first.accept_token(grammars.single_byte_tokens[b'"'])
    assert len(built) == 1
    assert write(second, grammars.eos, 0)
    monkeypatch.setattr("mm_rec.inference.grammar.compiler.MAX_KEPT", 2_000)  # and what is kept has a bound
    for number in range(3):
        grammars.json_schema({"enum": [f"{number}{i}" for i in range(90)]})
    grammars.json_schema(schema)
    assert len(built) == 5


def test_filling_that_is_no_longer_needed_hurries_nobody(grammars: GrammarCompiler) -> None:
    tokenizer = simple_tokenizer(2000)
    wanted = json.dumps("uzun bir cümle, kırk harften uzun olsun diye", ensure_ascii=False) + "\n"
    ids = tokenizer.encode(wanted, add_special_tokens=False)
    constraint = grammars.json_schema({"type": "string", "minLength": 40})

    def sure(step: int) -> Tensor:
        return torch.zeros(grammars.vocab_size).index_fill(0, torch.tensor(ids[step]), 50.0)

    assert write(constraint, grammars.eos, 0, len(ids), sure) == ids


def test_what_did_not_fit_is_not_complete(grammars: GrammarCompiler) -> None:
    tokenizer = simple_tokenizer(2000)
    for budget in (1, 5, 20):
        constraint = grammars.json_schema(PERSON)
        ids = write(constraint, int(tokenizer.eos_token_id or 0), 0, budget)
        assert len(ids) == budget
        assert not constraint.is_accepting and not constraint.is_stopped
        with pytest.raises(ValueError, match=r"Expecting|Unterminated|Extra"):
            json.loads(str(tokenizer.decode(ids)))


def test_a_budget_does_not_hurry_a_model_that_ends_by_itself(grammars: GrammarCompiler) -> None:
    tokenizer = simple_tokenizer(2000)
    wanted = (
        '{"adı": "Ayşe Gül", "yaş": 12, "şehir": "Muş", "boy": 1.25, "adres": {"kapı": 3, "kat": null}}\n'
    )
    ids = tokenizer.encode(wanted, add_special_tokens=False)
    constraint = grammars.json_schema(PERSON)
    for left, token in zip(range(len(ids) + 100, 0, -1), ids, strict=False):
        assert constraint.token_mask(left)[token]
        constraint.accept_token(token)
    assert constraint.is_accepting and constraint.is_stopped


def test_only_eos_is_left_at_the_end_and_never_before(grammars: GrammarCompiler) -> None:
    tokenizer = simple_tokenizer(2000)
    eos = int(tokenizer.eos_token_id or 0)
    constraint = grammars.json_schema({"const": 1})
    (one, end) = tokenizer.encode("1\n", add_special_tokens=False)
    assert not constraint.is_accepting and not constraint.token_mask()[eos]
    constraint.accept_token(one)
    assert not constraint.is_accepting and not constraint.is_stopped
    constraint.accept_token(end)
    assert constraint.is_accepting and constraint.is_stopped
    assert constraint.token_mask().nonzero().flatten().tolist() == [eos]


def test_the_mask_has_a_place_for_every_row_of_the_model(grammars: GrammarCompiler) -> None:
    tokenizer = simple_tokenizer(2000)
    assert grammars.json_object().token_mask().shape == (2000,)
    wider = GrammarCompiler(tokenizer, model_vocab_size=2048).json_object().token_mask()
    assert wider.shape == (2048,) and wider.dtype == torch.bool and not wider[2000:].any()


def test_a_tokenizer_may_have_special_tokens_past_the_rows(
    build: Callable[..., PreTrainedTokenizerBase],
) -> None:
    tokenizer = build("simple")
    tokenizer.add_special_tokens({"extra_special_tokens": [*tokenizer.extra_special_tokens, "<picture>"]})
    rows = len(tokenizer) - 1
    grammars = GrammarCompiler(tokenizer, rows, [rows])
    constraint = grammars.json_schema({"const": 7})
    assert constraint.token_mask().shape == (rows,) and grammars.stop_ids == [tokenizer.eos_token_id]
    assert constraint.sample(torch.zeros(rows), 9, lambda scores: int(scores.argmax())) < rows


def test_role_markers_are_not_written_as_text(build: Callable[..., PreTrainedTokenizerBase]) -> None:
    """Special tokens without a name of their own too, as those of a published LLaMA's folder."""
    tokenizer = build("llama3", "llama3")
    tokenizer.extra_special_tokens = []
    assert "<|start_header_id|>" not in tokenizer.all_special_tokens
    with pytest.raises(ConfigError, match="special token"):
        answer(tokenizer, GrammarCompiler(tokenizer).json_schema({"const": "<|start_header_id|>"}), 0)


def test_a_token_that_is_not_allowed_is_refused(grammars: GrammarCompiler) -> None:
    constraint = grammars.json_object()
    with pytest.raises(ValueError, match="does not follow"):
        constraint.accept_token(int(simple_tokenizer(2000).encode("x", add_special_tokens=False)[0]))


def test_special_tokens_are_written_neither_as_such_nor_as_text(grammars: GrammarCompiler) -> None:
    tokenizer = simple_tokenizer(2000)
    constraint = grammars.json_schema({"type": "string"})
    for token in tokenizer.encode('"<', add_special_tokens=False) + [
        token for letter in "|user|" for token in tokenizer.encode(letter, add_special_tokens=False)
    ]:
        assert constraint.token_mask()[token]
        constraint.accept_token(token)
    allowed = constraint.token_mask()
    assert not allowed[tokenizer.convert_tokens_to_ids(">")]
    assert allowed[tokenizer.convert_tokens_to_ids("x")]
    assert not allowed[tokenizer.all_special_ids].any()
    with pytest.raises(ConfigError, match="special token"):
        answer(tokenizer, grammars.json_schema({"const": "<|user|>"}), 0)


# Tool calls.

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "hava.durumu",
            "parameters": {
                "type": "dict",
                "properties": {
                    "şehir": {"type": "string", "maxLength": 20},
                    "günler": {"type": "tuple", "items": {"type": "float"}, "maxItems": 2},
                    "birim": {"type": "string", "enum": ["°C", "°F"]},
                },
                "required": ["şehir", "günler"],
            },
        },
    },
    {"type": "function", "function": {"name": "saat"}},
    {"type": "function", "function": {"name": "kapat", "parameters": {}}},
]


def check_calls(tools: list[dict[str, Any]], calls: list[dict[str, Any]]) -> None:
    for call in calls:
        schema = callable_functions(tools, call["name"])[call["name"]]
        jsonschema.validate(call["arguments"], schema, cls=jsonschema.Draft202012Validator)


WRITABLE: tuple[dict[str, Any], ...] = (
    {"type": "object", "propertyNames": {"type": "string", "enum": ["a", "b"]}, "required": ["a", "b"],
     "additionalProperties": {"type": "string"}},
    {"type": "object", "patternProperties": {"^x": {"const": 1}}, "required": ["xa"], "additionalProperties": False},
    {"const": [12.0, {"a": 1e-7, "b": 1e22, "c": -2.5}]},
    {"enum": [1e-5, 1.5e16, True]},
    {"allOf": [{"enum": [True, {"a": 1, "b": 2.0}]}, {"enum": [1, {"b": 2, "a": 1}]}]},
    {"type": "number", "x-minimum": "a note", "x-unique-items": "another"},
    {"type": "number", "minimum": -1.5, "exclusiveMaximum": 1e3},
    {"type": "object", "properties": {"a": {"type": "string", "minLength": 4}, "b": {"type": "array", "minItems": 3,
     "items": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1, "multipleOf": 0.25}}},
     "required": ["a", "b"], "additionalProperties": False},
    {"type": "number", "minimum": 0.001}, {"type": "number", "minimum": -0.75, "maximum": -0.5},
    {"anyOf": [{"type": "number"}, {"type": "object", "properties": {"b": {"type": "number", "maximum": -299.5}},
     "required": ["b"]}], "type": "object"},
    {"type": "string", "pattern": r"^\P{L}\p{P}[^\p{L}\p{N}]\p{Sc}\p{Lu}[^\P{Letter}]$"},
    {"type": "string", "pattern": r"^[^\p{L}]{12}$"},
    {"type": "string", "pattern": r"^[]\p{Lu}][^]\p{Lu}]$"},
    {"type": "string", "pattern": r"^\s\S\w\W\d\D$"},
    {"type": "string", "pattern": "^(?:a|bc+?)*$|x"},
)  # fmt: skip


@pytest.mark.parametrize("schema", WRITABLE, ids=str)
def test_every_character_that_a_schema_allows_can_be_written(
    grammars: GrammarCompiler, schema: dict[str, Any]
) -> None:
    generator, constraint = torch.Generator().manual_seed(0), grammars.json_schema(schema)
    for _ in range(25):
        mask = constraint.token_mask()
        for token in (token for token in grammars.single_byte_tokens.values() if mask[token]):
            wanted = torch.zeros(grammars.model_vocab_size).index_fill(0, torch.tensor(token), 1.0)
            assert constraint.sample(wanted, 10_000, lambda row: int(row.argmax())) == token
        row = torch.rand(grammars.model_vocab_size, generator=generator)
        token = constraint.sample(row, 10_000, lambda row: int(row.argmax()))
        if token == grammars.eos:
            break
        constraint.accept_token(token)
    for seed in SEEDS:
        json.loads(answer(simple_tokenizer(2000), grammars.json_schema(schema), seed))


def test_arrays_whose_items_differ_are_looked_at_until_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = {"type": "array", "uniqueItems": True}
    schema = checked_schema({"type": "array", "items": checked_schema(inner)})
    automaton = PushdownAutomaton()
    automaton.finish(SchemaCompiler(automaton, schema).compile())
    looked_at: list[str] = []
    read = unique_items._array_at_start

    def noted(text: str) -> tuple[list[str] | None, int]:
        looked_at.append(text)
        return read(text)

    monkeypatch.setattr(unique_items, "_array_at_start", noted)
    unique, place = UniqueItems(automaton), automaton.begin()
    for piece in [b"[", *[b"[1, [2, 2.0], 3], "] * 50, b"[1, 2"]:
        unique.write(place, piece)
        for byte in piece:
            place = automaton.advance(place, byte)
        looked_at.clear()
        assert unique.differ(place, b"[]]" if piece.endswith(b" ") else b"]]")
        assert len(looked_at) <= 2
    assert not unique.differ(place, b", 2.0]]")
    assert not UniqueItems(automaton).differ(automaton.begin(), b"[" * 5_000 + b"]" * 5_000)


@pytest.mark.parametrize(
    ("bounds", "wrong"),
    [
        ({"exclusiveMinimum": 0, "maximum": 0.5}, "0"),
        ({"exclusiveMinimum": 100, "exclusiveMaximum": 100.5}, "100"),
        ({"minimum": -1.5, "exclusiveMaximum": -1}, "-1"),
    ],
)
def test_an_exclusive_bound_is_not_taken_itself(
    grammars: GrammarCompiler, bounds: dict[str, float], wrong: str
) -> None:
    """Also where no other integer lies between the bounds."""
    schema = {"type": "array", "items": {"type": "number", **bounds}, "minItems": 1}
    tokenizer = simple_tokenizer(2000)
    for seed in SEEDS:
        begun = starting(tokenizer, grammars, f"[{wrong}]")
        text = answer(tokenizer, grammars.json_schema(schema), seed, logits=begun)
        assert text.startswith(f"[{wrong}.")
        jsonschema.validate(json.loads(text), schema)


def test_a_search_for_endings_is_bounded_by_their_tokens(
    grammars: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one token, however many are drawn before one is taken."""
    schema = {"type": "array", "items": {"type": "integer", "multipleOf": 997}, "minItems": 200}
    constraint, tried = grammars.json_schema(schema), [0]
    is_ending = constraint._is_ending

    def counted(tokens: list[int]) -> bool:
        tried[0] += len(tokens)
        return is_ending(tokens)

    monkeypatch.setattr(constraint, "_is_ending", counted)
    generator = torch.Generator().manual_seed(0)
    for left in range(660, 600, -1):
        row, tried[0] = torch.rand(grammars.model_vocab_size, generator=generator), 0
        constraint.accept_token(constraint.sample(row, left, lambda row: int(row.argmax())))
        assert tried[0] < 120_000


def test_the_token_of_an_ending_is_taken_after_many_draws_though_its_id_is_zero(
    grammars: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    constraint = grammars.json_schema({"type": "string"})
    monkeypatch.setattr(constraint, "_fits", lambda *_: False)
    monkeypatch.setattr(constraint, "_safe_token", lambda _: 0)
    assert constraint.sample(torch.zeros(grammars.model_vocab_size), 9, lambda _: 5) == 0


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("kind", MODELS)
def test_random_logits_make_the_calls_that_the_layout_writes(
    build: Callable[..., PreTrainedTokenizerBase], kind: str, layout: str
) -> None:
    tokenizer = build(kind, layout)
    grammars = GrammarCompiler(tokenizer)
    for seed in SEEDS:
        for choice, parallel in (("required", True), ("required", False), ("saat", False)):
            text = answer(tokenizer, grammars.tool_calls(TOOLS, choice, parallel), seed, budget=400)
            content, calls = parse_reply(tokenizer, text)
            assert content == "" and 1 <= len(calls) <= (MAX_TOOL_CALLS if parallel else 1)
            assert choice == "required" or {call["name"] for call in calls} == {choice}
            check_calls(TOOLS, calls)
            if not any(letter.isdigit() for letter in text):  # a number can be written in several ways
                assert rendered(tokenizer, content, calls) == text


def rendered(tokenizer: PreTrainedTokenizerBase, content: str, calls: list[dict[str, Any]]) -> str:
    """What the chat template writes for a reply, without the end of the turn."""
    question = ChatMessage("user", "?")
    reply = ChatMessage(
        "assistant", content, tuple(ToolCall(call["name"], call["arguments"]) for call in calls)
    )
    whole = conversation_text(tokenizer, Conversation((question, reply)))
    return (
        whole.removeprefix(prompt_text(tokenizer, [question]))
        .removesuffix("\n")
        .removesuffix(str(tokenizer.eos_token))
    )


def follow(tokenizer: PreTrainedTokenizerBase, constraint: GrammarConstraint, text: str) -> bool:
    """Whether a text, tokenized as in training, is allowed token by token."""
    for token in tokenizer.encode(text, add_special_tokens=False):
        if not constraint.token_mask()[token]:
            return False
        constraint.accept_token(token)
    return True


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("content", ["", "Bir bakayım.\nOlur mu?", 'Şöyle: {"name": "Ali"}\n{"a": 1}'])
def test_what_training_showed_is_what_auto_allows(
    build: Callable[..., PreTrainedTokenizerBase], kind: str, layout: str, content: str
) -> None:
    tokenizer = build(kind, layout)
    grammars = GrammarCompiler(tokenizer)
    calls = [
        {"name": "hava.durumu", "arguments": {"şehir": "Iğdır", "günler": [1, 2.5]}},
        {"name": "kapat", "arguments": {"dilim": "TR", "x": [None, {"y": True}]}},
    ]
    for count in (0, 1, 2):
        if not content and not count:
            continue
        constraint = grammars.tool_calls(TOOLS, "auto")
        assert follow(tokenizer, constraint, rendered(tokenizer, content, calls[:count]))
        assert constraint.is_accepting and constraint.token_mask()[int(tokenizer.eos_token_id or 0)]


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_auto_allows_no_call_that_is_not_defined_or_does_not_fit(
    build: Callable[..., PreTrainedTokenizerBase], layout: str
) -> None:
    tokenizer = build("simple", layout)
    grammars = GrammarCompiler(tokenizer)
    calls = [
        {"name": "aç", "arguments": {}},
        {"name": "hava.durumu", "arguments": {"şehir": 7, "günler": []}},
        {"name": "hava.durumu", "arguments": {"şehir": "Muş", "günler": [], "x": 1}},
    ]
    for call in calls:
        assert not follow(tokenizer, grammars.tool_calls(TOOLS, "auto"), rendered(tokenizer, "Peki.", [call]))
    written = '{ "parameters": {}, "name": "saat"}'  # read as a call, and not as the layout writes one
    if layout == "llama3":
        assert not follow(tokenizer, grammars.tool_calls(TOOLS, "auto"), f"Peki.\n  {written}")


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_auto_leaves_text_to_its_end(build: Callable[..., PreTrainedTokenizerBase], layout: str) -> None:
    tokenizer = build("sentencepiece", layout)
    grammars = GrammarCompiler(tokenizer)
    generator = torch.Generator().manual_seed(0)

    def never_ending(_step: int) -> Tensor:
        row = torch.randn(grammars.vocab_size, generator=generator) * 3
        row[grammars.eos] = -torch.inf
        return row

    for seed in SEEDS:
        constraint = grammars.tool_calls(TOOLS, "auto")
        ids = write(constraint, grammars.eos, seed, 120, never_ending)
        _, calls = parse_reply(tokenizer, str(tokenizer.decode(ids, skip_special_tokens=False)))
        assert not calls
        assert len(ids) == 120  # a budget cuts free text where it stands


def test_calls_are_limited_where_they_are_not_parallel(build: Callable[..., PreTrainedTokenizerBase]) -> None:
    tokenizer = build("simple")
    one = '<|tool_call|>{"name": "saat", "arguments": {}}\n'
    for parallel, most in ((False, 1), (True, MAX_TOOL_CALLS)):
        for choice in ("auto", "required"):
            constraint = GrammarCompiler(tokenizer).tool_calls(TOOLS, choice, parallel)
            assert follow(tokenizer, constraint, one * most)
            assert constraint.is_accepting and not follow(tokenizer, constraint, one)


def bfcl_functions(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("BFCL_*.json")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield from json.loads(line)["function"]


def test_random_logits_call_every_function_of_bfcl(
    real_data: Callable[[str], Path], grammars: GrammarCompiler
) -> None:
    tokenizer = simple_tokenizer(2000)
    functions = list(bfcl_functions(real_data("instruct/bfcl")))
    assert len(functions) > 800
    for seed, function in enumerate(functions[::12]):
        text = answer(tokenizer, grammars.tool_calls([function], "required", False), seed, budget=400)
        _, calls = parse_reply(tokenizer, text)
        assert [call["name"] for call in calls] == [function["name"]]
        check_calls([function], calls)


# What cannot be followed.


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


BAD: dict[str, tuple[Any, str]] = {
    "no object": (["type", "object"], "is an object, not"),
    "unknown type": ({"type": "dict"}, "Invalid type: dict"),
    "unknown reference": ({"$ref": "#/$defs/yok"}, r"/\$defs/yok"),
    "file": ({"$ref": "file:///etc/passwd"}, "does not fetch"),
    "relative file": ({"$ref": "pyproject.toml"}, "does not fetch"),
    "reference to itself": ({"$ref": "#"}, "cannot be followed"),
    "not supported": ({"type": "array", "contains": {"const": 1}}, "contains"),
    "not": ({"not": {"type": "string"}}, '"not"'),
    "empty enum": ({"enum": []}, "anyOf is empty"),
    "endless": (
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        "no text of it has an end",
    ),
    "long": ({"type": "array", "items": {"const": 1}, "minItems": 3000}, "no text of at most 4,096 tokens"),
    "contradiction": ({"type": "integer", "minimum": 5, "maximum": 1}, r"minimum \(5\)"),
    "unsure": ({"type": "object", "minProperties": 2}, "minProperties"),
    "nested": (nested(2000), "nested more than 60 deep"),
    "huge enum": (
        {"enum": [f"değer {number}" for number in range(60_000)]},
        "characters; 1,000,000 are the most",
    ),
    "look-around": ({"type": "string", "pattern": "^(?=a)b$"}, "look-around"),
    "exponential intersection": (
        {"allOf": [{"anyOf": [{"required": [f"p{i}"]}, {"required": [f"q{i}"]}]} for i in range(20)]},
        "too large",
    ),
    "not JSON": ({"const": float("nan")}, "not JSON"),
    "large number": ({"type": "integer", "minimum": 10**400}, "a minimum of more than 40 digits"),
    "names of properties": ({"propertyNames": {"minLength": 3}}, "propertyNames"),
    "long literal": ({"type": "string", "pattern": "^" + "abcdefghij" * 3000 + "$"}, "no text of at most"),
    "longer literal": (
        {"type": "string", "pattern": "^" + "abcdefghij" * 8000 + "$"},
        "too large: .* states",
    ),
    "a million": ({"type": "string", "pattern": "^(a{1000}){1000}$"}, "no text of at most"),
    "too many to leave out": ({"properties": {f"p{i}": {} for i in range(1001)}}, "that may be left out"),
    "surrogate": ({"const": "\ud800"}, "cannot be followed"),
    "items of a former draft": ({"items": [{}]}, "an object, true or false, and no list"),
    "a reference to no schema": ({"$ref": "#/x", "x": [5]}, "an object or boolean"),
    "a reference to what is not read before": ({"$ref": "#/x", "x": {"type": None}}, "type must be a string"),
    "names of a number": ({"propertyNames": {"enum": 5}}, "enum of a schema is a list"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_schema_that_cannot_be_followed_says_so_at_once(grammars: GrammarCompiler, name: str) -> None:
    schema, reason = BAD[name]
    with little_work(), pytest.raises(ConfigError, match=reason) as error:
        grammars.json_schema(schema)
    assert len(str(error.value)) < 700
    if isinstance(schema, dict):
        tool = {"name": "kötü", "parameters": {"properties": {"a": schema}, "required": ["a"]}}
        if name == "unknown type":
            tool = {"name": "kötü", "parameters": {"type": "no"}}
        with pytest.raises(ConfigError):
            grammars.tool_calls([tool], "required")


KEYWORDS = (
    "type", "enum", "properties", "patternProperties", "required", "additionalProperties", "items",
    "prefixItems", "anyOf",
    "oneOf", "allOf", "pattern", "format", "$ref", "minimum", "maximum", "exclusiveMaximum", "minLength", "maxLength",
    "minItems", "maxItems", "minProperties", "maxProperties",
)  # fmt: skip


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_a_keyword_with_a_value_of_another_kind_is_refused(grammars: GrammarCompiler, keyword: str) -> None:
    for value in (None, 5, "a", [5], [["a"]], {"a": 5}, [None], float("inf")):
        for schema in ({keyword: value}, {"allOf": [{"minItems": 0}, {keyword: value}]}):
            refused = pytest.raises(ConfigError) if value is None else contextlib.suppress(ConfigError)
            with refused:
                grammars.json_schema({"properties": {"a": schema}, "required": ["a"]})


def test_a_schema_may_refer_to_itself_within_another_keyword(grammars: GrammarCompiler) -> None:
    again = {"allOf": [{"$ref": "#/$defs/node"}], "title": "as pydantic wrote it"}
    node = {"type": "object", "properties": {"next": again}, "additionalProperties": False}
    for text in ("{}", '{"next": {}}', '{"next": {"next": {}}}'):
        constraint = grammars.json_schema({"$ref": "#/$defs/node", "$defs": {"node": node}})
        assert follow(simple_tokenizer(2000), constraint, text), text


SLOW = {
    "two enums": {"allOf": [{"enum": list(range(60_000))}, {"enum": list(range(60_000, 120_000))}]},
    "names that are required": {"required": [f"a{i}" for i in range(60_000)]},
}


@pytest.mark.parametrize("name", SLOW)
def test_what_a_schema_lists_is_looked_up_at_once(grammars: GrammarCompiler, name: str) -> None:
    with little_work(), pytest.raises(ConfigError, match="too large"):
        grammars.json_schema(SLOW[name])


def test_putting_schemas_together_can_be_ended(grammars: GrammarCompiler) -> None:
    """There are many of them, and each is longer than the last."""
    parts = [{"required": [f"b{i}_{j}" for j in range(8)]} for i in range(5_000)]
    looks = itertools.count()

    def check() -> None:
        if next(looks) > 5_100:  # after all were seen, while they are put together
            raise TimeoutError

    with little_work(), pytest.raises(TimeoutError):
        grammars.json_schema({"allOf": parts}, check=check)


@pytest.mark.parametrize(
    ("one", "other", "text"),
    [
        ([1, 2], [2.0, 3], "2"),
        ([1, True], [True], "true"),
        ([{"a": 1, "b": [2]}], [{"b": [2], "a": 1}], '{"a": 1, "b": [2]}'),
    ],
)
def test_two_enums_have_what_is_equal_as_json(
    grammars: GrammarCompiler, one: list[Any], other: list[Any], text: str
) -> None:
    constraint = grammars.json_schema({"allOf": [{"enum": one}, {"enum": other}]})
    assert follow(simple_tokenizer(2000), constraint, text)


def test_references_that_never_end_are_refused(grammars: GrammarCompiler) -> None:
    twice = {"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}
    growing = {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"a": twice}}}}
    chain = {f"d{i}": {"properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(500)}
    for schema in (growing, {"$ref": "#/$defs/d0", "$defs": {**chain, "d500": {}}}):
        with little_work(), pytest.raises(ConfigError, match=r"too deep|without end"):
            grammars.json_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^(a?){200}a{200}$"},
        {"type": "string", "pattern": "^((a{1,100}){1,100}){1,100}$"},
        {"type": "string", "pattern": "^.{1,100000}x.{100000}$"},
        {"type": "string", "pattern": "^([a-z]{1,1000}\\w{1,1000}){1,1000}$"},
        {"type": "string", "pattern": "(x+x+)+y"},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {
            "type": "object",
            "properties": {f"p{i}": {"type": "integer"} for i in range(3000)},
            "additionalProperties": False,
        },
        {"enum": [f"d{number}" for number in range(70_000)]},
        {
            "type": "array",
            "items": {"type": "array", "minItems": 3000},
            "minItems": 1000,
            "maxItems": 100_000,
        },
    ],
)
def test_a_hostile_schema_is_bounded_in_time(grammars: GrammarCompiler, schema: dict[str, Any]) -> None:
    """It is followed, or refused; in either case a token takes milliseconds."""
    with little_work(), contextlib.suppress(ConfigError):
        write(grammars.json_schema(schema), grammars.eos, 0, 300)


def test_nothing_is_asked_of_the_network(grammars: GrammarCompiler) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        called = threading.Event()

        def listen() -> None:
            try:
                server.accept()
                called.set()
            except TimeoutError:
                pass

        thread = threading.Thread(target=listen)
        thread.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"
        for schema in (
            {"$ref": address},
            {"$id": address, "$ref": "other.json"},
            {"$schema": address, "$ref": address},
        ):
            with pytest.raises(ConfigError, match=r"does not fetch|cannot be followed"):
                grammars.json_schema(schema)
        thread.join()
    assert not called.is_set()


def test_the_tool_that_cannot_be_followed_is_named(grammars: GrammarCompiler) -> None:
    bad = {
        "name": "kötü",
        "parameters": {"type": "object", "properties": {"a": {"type": "array", "contains": {}}}},
    }
    with pytest.raises(ConfigError, match=r"'kötü'.*contains"):
        grammars.tool_calls([*TOOLS, bad], "required")


@pytest.mark.parametrize(
    ("tools", "choice", "reason"),
    [
        ([], "required", "no tools"),
        (TOOLS, "yok", "'yok', which is not defined. Choose one of hava.durumu, saat, kapat"),
        ([*TOOLS, TOOLS[1]], "auto", "'saat' is defined twice"),
        (["saat"], "auto", "a tool is defined as"),
        ([{"type": "function", "function": {"name": ""}}], "auto", "a tool is defined as"),
        ([{"name": "a", "parameters": []}], "auto", "no JSON schema"),
        ([{"name": "a", "parameters": {"type": "array"}}], "auto", "of the type 'array'"),
    ],
)
def test_tools_that_cannot_be_called(
    grammars: GrammarCompiler, tools: list[Any], choice: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        grammars.tool_calls(tools, choice)


def test_types_of_python_are_those_of_json_and_values_stay(grammars: GrammarCompiler) -> None:
    parameters = {
        "type": "dict",
        "properties": {
            "type": {"type": "float", "enum": [1.5], "default": {"type": "dict"}},
            "b": {"type": "any"},
            "c": {"type": "tuple", "items": {"type": "dict", "properties": {"d": {"type": "list"}}}},
        },
    }
    assert callable_functions([{"name": "f", "parameters": parameters}], "f")["f"] == {
        "type": "object",
        "properties": {
            "type": {"type": "number", "enum": [1.5], "default": {"type": "dict"}},
            "b": {},
            "c": {"type": "array", "items": {"type": "object", "properties": {"d": {"type": "array"}}}},
        },
        "additionalProperties": False,
    }
    assert parameters["type"] == "dict"


def test_a_tokenizer_that_cannot_be_held(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ messages }}"
    grammars = GrammarCompiler(tokenizer)
    assert not grammars.json_object().is_accepting
    with pytest.raises(ConfigError, match="does not tell the model which tools"):
        grammars.tool_calls(TOOLS)
    tokenizer.eos_token = None
    with pytest.raises(TokenizerError, match="has no eos"):
        GrammarCompiler(tokenizer)


# A call, or an answer that follows a schema.

ANSWER = {
    "type": "object",
    "properties": {
        "şehir": {"enum": ["Muş", "Van"]},
        "günler": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["şehir", "günler"],
    "additionalProperties": False,
}


def starting(
    tokenizer: PreTrainedTokenizerBase, grammars: GrammarCompiler, text: str
) -> Callable[[int], Tensor]:
    """Random logits of a model that would begin with a text."""
    ids, generator = tokenizer.encode(text, add_special_tokens=False), torch.Generator().manual_seed(0)

    def logits(step: int) -> Tensor:
        row = torch.randn(grammars.vocab_size, generator=generator) * 3
        if step < len(ids):
            row[ids[step]] = 1000.0
        return row

    return logits


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("kind", MODELS)
def test_auto_with_a_schema_allows_a_call_or_an_answer_that_follows_it(
    build: Callable[..., PreTrainedTokenizerBase], kind: str, layout: str
) -> None:
    tokenizer = build(kind, layout)
    grammars, form = GrammarCompiler(tokenizer), assistant_format(tokenizer).require_calls()
    for seed in SEEDS:
        for beginning in ("", '{"şehir', form.opening):
            constraint = grammars.tool_calls(TOOLS, "auto", True, answer_schema=ANSWER)
            text = answer(
                tokenizer, constraint, seed, budget=400, logits=starting(tokenizer, grammars, beginning)
            )
            parser = CallsOrJsonParser(form, ["hava.durumu", "saat", "kapat"])
            parts = parse_in_pieces(parser, text, seed)
            content, calls = parse_reply(tokenizer, text)
            if any(text.startswith(one) for one in form.beginnings(["hava.durumu", "saat", "kapat"])):
                assert not content and calls and beginning in ("", form.opening)
                check_calls(TOOLS, calls)
                assert [part.text for part in parts if part.kind == "call"] == [
                    call["name"] for call in calls
                ]
                assert not any(part.kind == "text" for part in parts)
            else:
                assert beginning != form.opening
                jsonschema.validate(json.loads("".join(part.text for part in parts)), ANSWER)
                assert {part.kind for part in parts} == {"text"}
    required = grammars.tool_calls(TOOLS, "required", True, answer_schema=ANSWER)
    assert not follow(tokenizer, required, '{"şehir": "Muş"')


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_neither_other_answers_nor_text_before_a_call_are_allowed_with_a_schema(
    build: Callable[..., PreTrainedTokenizerBase], layout: str
) -> None:
    tokenizer = build("simple", layout)
    grammars = GrammarCompiler(tokenizer)

    def allows(text: str) -> bool:
        return follow(tokenizer, grammars.tool_calls(TOOLS, "auto", answer_schema=ANSWER), text)

    call = {"name": "kapat", "arguments": {"dilim": "TR"}}
    assert allows('{"şehir": "Muş", "günler": 3}') and allows(rendered(tokenizer, "", [call]))
    for text in (
        '{"şehir": "Bolu"',
        '{"günler": 3',
        "Merhaba",
        '"Muş"',
        rendered(tokenizer, "Peki.", [call]),
    ):
        assert not allows(text)


def test_an_answer_that_could_be_read_as_a_call_is_refused(
    build: Callable[..., PreTrainedTokenizerBase],
) -> None:
    named = {"type": "object", "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}}}
    person = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
    closed = {**person, "required": ["name", "age"], "additionalProperties": False}
    for layout in LAYOUT_NAMES:
        tokenizer = build("simple", layout)
        grammars = GrammarCompiler(tokenizer)
        for text in ('{"name": "hava.durumu", "age": 3}', '{"name": "Ali", "age": 3}'):
            assert follow(tokenizer, grammars.tool_calls(TOOLS, "auto", answer_schema=closed), text)
        call = rendered(tokenizer, "", [{"name": "kapat", "arguments": {}}])
        assert follow(tokenizer, grammars.tool_calls(TOOLS, "auto", answer_schema=closed), call)
        for schema in ({"type": "object"}, named):
            if layout == "llama3":  # whose calls are objects themselves
                with pytest.raises(ConfigError, match="may begin as a call of"):
                    grammars.tool_calls(TOOLS, "auto", answer_schema=schema)
            else:
                assert not grammars.tool_calls(TOOLS, "auto", answer_schema=schema).is_accepting
            assert not grammars.tool_calls(TOOLS, "required", answer_schema=schema).is_accepting
