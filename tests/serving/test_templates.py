"""Chat templates of published families: calls and reasoning as grammars make them and the official client gets them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import torch
from openai import OpenAI
from published_templates import CALLING, PUBLISHED, REASONING, wear
from serving.parsing import parse_in_pieces
from serving.server import Server, small_model
from small_models import build_small
from transformers import PreTrainedTokenizerBase

from mm_rec.data.conversations.conversation import ChatMessage, Conversation, ToolCall
from mm_rec.data.conversations.rendering import conversation_text, prompt_text
from mm_rec.errors import ConfigError
from mm_rec.inference.grammar.compiler import GrammarCompiler
from mm_rec.inference.grammar.constraint import GrammarConstraint
from mm_rec.inference.grammar.lark_grammar import callable_functions
from mm_rec.inference.sampler import Sampler, SamplingParams
from mm_rec.inference.scheduler import Scheduler
from mm_rec.serving.protocol.request_model import MAX_JSON_DEPTH
from mm_rec.serving.protocol.tool_calls import make_parser
from mm_rec.tokenizers.assistant_format import assistant_format
from mm_rec.tokenizers.openai_tokenizer import simple_tokenizer

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "hava_durumu",
            "description": "Weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "şehir": {"type": "string", "maxLength": 12},
                    "günler": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
                    "birim": {"enum": ["°C", "°F"]},
                    "ayrıntı": {"$ref": "#/$defs/ayrıntı"},
                },
                "required": ["şehir", "günler"],
                "$defs": {"ayrıntı": {"type": "object", "properties": {"a": {"type": "boolean"}}}},
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "saat",
            "description": "The time.",
            "parameters": {"type": "object", "properties": {}},
        },
    },
]
CALLS = (
    ToolCall("hava_durumu", {"şehir": "Iğdır", "günler": [1, 2]}, "abcdefgh1"),
    ToolCall("saat", {}, "abcdefgh2"),
)
ASKED = [ChatMessage("user", "Hava?")]


def write(
    constraint: GrammarConstraint, grammars: GrammarCompiler, seed: int, budget: int = 300
) -> list[int]:
    """Generate text from random logits."""
    sampler, generator = (
        Sampler(SamplingParams(seed=seed, temperature=1.0, top_p=1.0)),
        torch.Generator().manual_seed(seed),
    )
    ids: list[int] = []
    while not constraint.is_stopped and len(ids) < budget:
        logits = torch.randn(grammars.vocab_size, generator=generator) * 3
        token = constraint.sample(logits, budget - len(ids), sampler.sample)
        if token in grammars.stop_ids:
            break
        constraint.accept_token(token)
        ids.append(token)
    assert constraint.is_accepting
    return ids


def read(
    tokenizer: PreTrainedTokenizerBase, text: str, prompt: str, seed: int
) -> tuple[str, str, list[tuple[str, Any]]]:
    """Reasoning, text and calls of an answer, as the server reads it in random pieces."""
    parts = parse_in_pieces(make_parser(assistant_format(tokenizer), prompt, True), text, seed)
    told = ["".join(part.text for part in parts if part.kind == kind) for kind in ("reasoning", "text")]
    names = [part.text for part in parts if part.kind == "call"]
    given = [
        "".join(part.text for part in parts if part.kind == "arguments" and part.call == n)
        for n in range(len(names))
    ]
    return told[0], told[1], [(name, json.loads(text)) for name, text in zip(names, given, strict=True)]


def dressed(name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """SentencePiece with a published template, or a byte-level one where the sign of SentencePiece is in its tokens."""
    made = simple_tokenizer(2000) if "▁" in "".join(PUBLISHED[name].tokens) else copy.deepcopy(tokenizer)
    made.chat_template = None
    wear(made, name)
    return made


@pytest.mark.parametrize("name", CALLING)
def test_random_logits_make_calls_in_the_form_of_the_template(
    chat_tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    tokenizer = dressed(name, chat_tokenizer)
    grammars, form = GrammarCompiler(tokenizer), assistant_format(tokenizer)
    prompt = prompt_text(tokenizer, ASKED, TOOLS)
    made = 0
    for seed in range(6):
        for choice, parallel in (("required", True), ("required", False), ("saat", True), ("auto", True)):
            ids = write(grammars.tool_calls(TOOLS, choice, parallel, prompt), grammars, seed)
            text = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
            reply = form.parse(text, prompt)
            calls = [(call["name"], call["arguments"]) for call in reply.calls]
            thought, said, told = read(tokenizer, text, prompt, seed)
            assert told == calls and (thought, said.strip()) == (reply.reasoning, reply.content)
            assert choice == "auto" or (calls and not said)
            assert choice != "saat" or {called for called, _ in calls} == {"saat"}
            assert len(calls) <= 1 or (parallel and form.require_calls().call_separator is not None)
            for called, arguments in calls:
                schema = callable_functions(TOOLS, called)[called]
                jsonschema.validate(arguments, schema, cls=jsonschema.Draft202012Validator)
            made += len(calls)
    assert made >= 18


@pytest.mark.parametrize("name", CALLING)
def test_arguments_as_deep_as_may_be_are_laid_out(chat_tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    arguments: Any = 1
    for _ in range(MAX_JSON_DEPTH):
        arguments = {"a": arguments}
    call, result = ToolCall("saat", arguments, "abcdefgh1"), ChatMessage("tool", "3", (), "abcdefgh1")
    text = prompt_text(
        dressed(name, chat_tokenizer), [*ASKED, ChatMessage("assistant", "", (call,)), result], TOOLS
    )
    assert text.count("{") >= MAX_JSON_DEPTH - 1


REPORT = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "fine": {"type": "boolean"}},
    "required": ["name", "fine"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("name", CALLING)
def test_a_call_or_an_answer_that_follows_a_schema_in_the_form_of_the_template(
    chat_tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    tokenizer = dressed(name, chat_tokenizer)
    grammars, form = GrammarCompiler(tokenizer), assistant_format(tokenizer)
    prompt, names = prompt_text(tokenizer, ASKED, TOOLS), ["hava_durumu", "saat"]
    reasoning = "</think>" if form.opens_reasoning(prompt) else ""
    call = form.require_calls().beginnings(["saat"])[0]
    made = answered = 0
    for seed in range(3):
        for beginning in ("", f'{reasoning}{{"name": "A', reasoning + call):
            constraint = grammars.tool_calls(TOOLS, "auto", True, prompt, REPORT)
            begun = tokenizer.encode(beginning, add_special_tokens=False)
            for token in begun:
                assert constraint.token_mask()[token], (beginning, tokenizer.decode([token]))
                constraint.accept_token(token)
            ids = begun + write(constraint, grammars, seed)
            text = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
            parts = parse_in_pieces(make_parser(form, prompt, True, names), text, seed)
            said = "".join(part.text for part in parts if part.kind == "text")
            if any(part.kind == "call" for part in parts):
                assert not said and not beginning.endswith('"A')
                for called, arguments in read(tokenizer, text, prompt, seed)[2]:
                    schema = callable_functions(TOOLS, called)[called]
                    jsonschema.validate(arguments, schema, cls=jsonschema.Draft202012Validator)
                made += 1
            else:
                jsonschema.validate(json.loads(said), REPORT)
                answered += 1
    assert made >= 3 and answered >= 3


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": ["a"]},
        {"properties": {"x": {}}, "required": ["y"]},
        {"properties": {"x": {}}, "required": 5},
        {"properties": {"x": {}}, "anyOf": [{"required": ["x"]}]},
        {"properties": {"bir iki": {}}},
    ],
)
def test_what_keywords_cannot_say_is_refused(
    chat_tokenizer: PreTrainedTokenizerBase, parameters: dict[str, Any]
) -> None:
    grammars = GrammarCompiler(dressed("olmo3", chat_tokenizer))
    with pytest.raises(ConfigError, match=r"'f' (cannot be called in this model's form|has a parameter)"):
        grammars.tool_calls([{"name": "f", "parameters": parameters}], "required")
    fine = {
        "properties": {"x": True, "y": {"type": "integer"}},
        "required": ["y"],
        "additionalProperties": True,
    }
    assert not grammars.tool_calls([{"name": "f", "parameters": fine}], "required").is_accepting


@pytest.mark.parametrize("name", CALLING)
@pytest.mark.parametrize("said", ["", "Bir bakayım.\nOlur mu?"])
def test_what_the_template_writes_is_allowed(
    chat_tokenizer: PreTrainedTokenizerBase, name: str, said: str
) -> None:
    tokenizer = dressed(name, chat_tokenizer)
    grammars, form = GrammarCompiler(tokenizer), assistant_format(tokenizer).require_calls()
    prompt = prompt_text(tokenizer, ASKED, TOOLS)
    calls = CALLS if form.call_separator is not None else CALLS[:1]
    for made in (calls, ()):
        if (
            (said and made and form.after_text is None)
            or not (said or made)
            or (made and name in ("olmo3", "llama_pythonic"))
        ):
            continue  # the last two write texts otherwise than JSON does
        answer = ChatMessage("assistant", said, made)
        whole = conversation_text(tokenizer, Conversation((*ASKED, answer), tuple(TOOLS)))
        text = whole[whole.rindex("Hava?") :]
        start = len(text) - len(
            text.partition(form.opening.partition("\x00")[0] if made and not said else said)[2]
        )
        first = form.opening if made and not said else said
        text = text[start - len(first) :]
        text = text[: text.rindex(str(tokenizer.eos_token))]
        reasoning = assistant_format(tokenizer).reasoning
        opened = reasoning is not None and bool(reasoning.opening_in(prompt))
        constraint = grammars.tool_calls(TOOLS, "auto", True, prompt)
        for token in tokenizer.encode(("</think>" if opened else "") + text, add_special_tokens=False):
            assert constraint.token_mask()[token], (text, tokenizer.decode([token]))
            constraint.accept_token(token)
        assert constraint.is_accepting


@pytest.mark.parametrize("name", REASONING)
def test_json_follows_reasoning(chat_tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    tokenizer, published = dressed(name, chat_tokenizer), PUBLISHED[name]
    assert published.thought is not None
    grammars, form = GrammarCompiler(tokenizer), assistant_format(tokenizer)
    prompt = prompt_text(tokenizer, ASKED)
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    for seed in range(6):
        ids = write(grammars.json_schema(schema, prompt), grammars, seed)
        reply = form.parse(str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)), prompt)
        jsonschema.validate(json.loads(reply.content), schema)
    begin, end = published.thought
    thought = ("" if form.opens_reasoning(prompt) else begin) + f"Kış { {'a': 1} } geldi.{end}" + '{"a": 7}'
    constraint = grammars.json_schema(schema, prompt)
    for token in tokenizer.encode(thought, add_special_tokens=False):
        assert constraint.token_mask()[token]
        constraint.accept_token(token)
    assert constraint.is_accepting


@pytest.fixture(scope="module")
def families(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One server of a small random model for each published template; the models' own ends stop them."""
    scheduler, models = Scheduler(), []
    for name in PUBLISHED:
        tokenizer = dressed(name, chat_tokenizer)
        model = build_small("llama", 4096, len(tokenizer)).float()
        models.append(small_model("llama", tokenizer, name=name, scheduler=scheduler, model=model))
    running = Server(models, tmp_path_factory.mktemp("families"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(families: Server) -> OpenAI:
    return OpenAI(base_url=f"{families.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_conversation_over_the_official_client(client: OpenAI, name: str) -> None:
    asked: list[Any] = [{"role": "user", "content": "Hava?"}]
    first = (
        client.chat.completions.create(model=name, messages=asked, max_tokens=12, seed=1).choices[0].message
    )
    asked += [first.to_dict(), {"role": "user", "content": "Old?"}]
    answer = client.chat.completions.create(model=name, messages=asked, max_tokens=12, seed=1, stream=True)
    assert [chunk.choices[0].finish_reason for chunk in answer if chunk.choices][-1] in ("stop", "length")


@pytest.mark.parametrize("name", CALLING)
def test_calls_over_the_official_client(client: OpenAI, name: str) -> None:
    """A call is asked for, made, answered and followed by an answer, whole and as a stream alike."""
    asked: list[Any] = [{"role": "user", "content": "Hava?"}]
    fields: dict[str, Any] = {"model": name, "tools": TOOLS, "max_tokens": 200, "seed": 5, "temperature": 1.0}
    whole = client.chat.completions.create(**fields, messages=asked, tool_choice="required").choices[0]
    assert whole.finish_reason == "tool_calls" and whole.message.tool_calls
    streamed: dict[int, list[str]] = {}
    for chunk in client.chat.completions.create(
        **fields, messages=asked, tool_choice="required", stream=True
    ):
        for delta in chunk.choices[0].delta.tool_calls or []:
            assert delta.function is not None
            if delta.function.name:
                streamed[delta.index] = [delta.function.name, ""]
            streamed[delta.index][1] += delta.function.arguments or ""
    functions = [one.function for one in whole.message.tool_calls if one.type == "function"]
    assert [[one.name, one.arguments] for one in functions] == list(streamed.values())
    for one in functions:
        schema = callable_functions(TOOLS, one.name)[one.name]
        jsonschema.validate(json.loads(one.arguments), schema, cls=jsonschema.Draft202012Validator)
    asked.append(whole.message.to_dict())
    asked += [{"role": "tool", "tool_call_id": call.id, "content": "3"} for call in whole.message.tool_calls]
    fields["max_tokens"] = 12
    after = client.chat.completions.create(**fields, messages=asked, tool_choice="none").choices[0]
    assert after.finish_reason in ("stop", "length") and after.message.tool_calls is None


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in CALLING])
def test_tools_are_refused_where_the_template_has_none(client: OpenAI, name: str) -> None:
    with pytest.raises(Exception, match="does not tell the model which tools there are"):
        client.chat.completions.create(model=name, messages=[{"role": "user", "content": "?"}], tools=TOOLS)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", REASONING)
def test_reasoning_over_the_official_client(client: OpenAI, families: Server, name: str) -> None:
    """What comes before the end of reasoning is told apart from the answer, in chat completions and in responses."""
    tokenizer = families.context.registry.find(name).model.tokenizer
    fields: dict[str, Any] = {"model": name, "max_tokens": 60, "temperature": 1.0}
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    shape = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    thought = 0
    for seed in range(8):
        asked: list[Any] = [{"role": "user", "content": "Hava?"}]
        answer = client.chat.completions.create(**fields, messages=asked, seed=seed, response_format=shape)  # type: ignore[call-overload]
        [choice] = answer.choices
        reasoning = (choice.message.model_extra or {}).get("reasoning_content", "")
        assert "think>" not in reasoning + choice.message.content
        assert (
            choice.finish_reason == "length"
            or jsonschema.validate(json.loads(choice.message.content), schema) is None
        )
        used = answer.usage.completion_tokens_details.reasoning_tokens
        assert bool(used) == bool(reasoning) and used <= answer.usage.completion_tokens
        thought += bool(reasoning)
        again = client.chat.completions.create(
            **fields, messages=[*asked, choice.message.to_dict(), {"role": "user", "content": "Old?"}]
        )
        assert again.choices[0].finish_reason in ("stop", "length")
    kept = client.responses.create(
        model=name, input="Hava?", max_output_tokens=40, text={"format": {"type": "json_object"}}
    )
    assert kept.output[-1].type == "message" and "think>" not in kept.output_text
    if assistant_format(tokenizer).opens_reasoning(prompt_text(tokenizer, ASKED)):
        assert thought
        assert kept.output[0].type == "reasoning" and kept.output[0].content
    more = client.responses.create(
        model=name, input="Old?", previous_response_id=kept.id, max_output_tokens=8
    )
    assert more.output[-1].type == "message"
    kinds = [
        event.type
        for event in client.responses.create(model=name, input="Hava?", max_output_tokens=8, stream=True)
    ]
    assert kinds[-1] in ("response.completed", "response.incomplete")
