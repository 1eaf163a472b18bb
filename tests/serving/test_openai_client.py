"""OpenAI's client against the server: sync, async, streams, objects, tools, conversations, errors."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from typing import Any

import openai
import pydantic
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response as ModelResponse
from openai.types.responses import ResponseReasoningItem, ResponseStreamEvent
from serving.openai_requests import CLOCK, MESSAGES, RESPONSE_TOOLS, TOOLS, Chat, Embeddings, Responses
from serving.server import Server, small_model
from serving.shared_proofs import follows
from transformers import PreTrainedTokenizerBase

from mm_rec.serving.access import AccessPolicy
from mm_rec.serving.api_keys import create_key

REQUIRED = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 250}


class City(StrEnum):
    MUS = "Muş"
    VAN = "Van"


class Report(pydantic.BaseModel):
    """The weather of a city."""

    city: City
    days: list[bool] = pydantic.Field(max_length=3)


class Clock(pydantic.BaseModel):
    """Tells the time."""

    zone: City


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


@pytest.fixture
def chat(client: OpenAI) -> Chat:
    return Chat(client)


@pytest.fixture
def responses(client: OpenAI) -> Responses:
    return Responses(client)


def test_async_requests_at_once_are_answered_as_alone(server: Server, chat: Chat) -> None:
    async def ask_all() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            fields = {**chat.defaults, "temperature": 1}
            asked = [client.chat.completions.create(**fields, seed=seed) for seed in range(10)]
            return await asyncio.gather(*asked)

    together = [answer.choices[0].message.content for answer in asyncio.run(ask_all())]
    assert together == [chat.text(temperature=1, seed=seed) for seed in range(10)]


def test_an_async_stream_says_what_a_whole_answer_says(server: Server, chat: Chat) -> None:
    async def read() -> str:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(**chat.defaults, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(read()) == chat.text()


def test_chunks_of_a_stream_have_one_id_and_end_with_the_reason(chat: Chat) -> None:
    chunks = list(chat(stream=True, n=2, temperature=1, seed=7))
    assert len({(chunk.id, chunk.created, chunk.model, chunk.system_fingerprint) for chunk in chunks}) == 1
    texts = ["", ""]
    for chunk in chunks:
        [choice] = chunk.choices
        texts[choice.index] += choice.delta.content or ""
    assert texts == chat.texts(n=2, temperature=1, seed=7)
    assert [chunk.choices[0].delta.role for chunk in chunks[:3]] == ["assistant", "assistant", None]
    assert [chunk.choices[0].finish_reason for chunk in chunks[-3:]] == [None, "length", "length"]


def test_the_bytes_of_a_stream_end_with_done(client: OpenAI, chat: Chat) -> None:
    raw = client.chat.completions.with_streaming_response.create
    with raw(**chat.defaults, stream=True) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"


def test_the_helper_for_streams_puts_the_answer_together(client: OpenAI, chat: Chat) -> None:
    text = chat.text()
    fields: Any = {**chat.defaults, "stop": text[10:12]}  # the helper takes no answer that was cut
    with client.chat.completions.stream(**fields, stream_options={"include_usage": True}) as stream:
        said = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert said == final.choices[0].message.content == text.partition(text[10:12])[0] != ""
    assert final.usage is not None and 0 < final.usage.completion_tokens < 24


def test_an_answer_is_parsed_into_an_object_whatever_the_model_is(client: OpenAI, chat: Chat) -> None:
    for seed in range(4):
        fields: Any = {**chat.defaults, "max_tokens": 250, "temperature": 1, "seed": seed}
        parsed = client.chat.completions.parse(**fields, response_format=Report).choices[0].message.parsed
        assert isinstance(parsed, Report)
        with client.chat.completions.stream(**fields, response_format=Report) as stream:
            assert stream.get_final_completion().choices[0].message.parsed == parsed


def test_calls_are_parsed_into_objects(client: OpenAI, chat: Chat) -> None:
    fields: Any = {**chat.defaults, **REQUIRED, "tools": [openai.pydantic_function_tool(Clock, name="clock")]}
    [call] = client.chat.completions.parse(**fields).choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Clock)


def test_a_call_and_its_result_and_an_answer(chat: Chat) -> None:
    message = chat(**REQUIRED).choices[0].message
    [call] = message.tool_calls
    assert follows(call.function) in ("clock", "weather") and message.content is None
    told = [{"role": "tool", "tool_call_id": call.id, "content": result} for result in ("12:30", "1:15")]
    answers = [chat.text(messages=[*MESSAGES, message, one], tools=TOOLS, tool_choice="none") for one in told]
    assert answers[0] != answers[1]
    unknown = {**told[0], "tool_call_id": None}
    assert chat.refusal(messages=[*MESSAGES, message, unknown]).param == "messages[2].tool_call_id"


def test_a_parsed_message_goes_back_into_the_conversation(client: OpenAI, chat: Chat) -> None:
    fields: Any = {**chat.defaults, **REQUIRED}
    with client.chat.completions.stream(**fields) as stream:
        message = stream.get_final_completion().choices[0].message
    [call] = message.tool_calls or []
    result = {"role": "tool", "tool_call_id": call.id, "content": "12:30"}
    assert (
        chat(messages=[*MESSAGES, message, result], tools=TOOLS, tool_choice="none")
        .choices[0]
        .message.content
    )


def test_fragments_of_a_call_are_the_whole_call(chat: Chat) -> None:
    several = {**REQUIRED, "parallel_tool_calls": True, "temperature": 1}
    seed = next(seed for seed in range(20) if 1 < len(chat.calls(**several, seed=seed)) < 5)
    whole = chat(**several, seed=seed).choices[0]
    chunks = list(chat(**several, seed=seed, stream=True))
    names, arguments = [], [""] * len(whole.message.tool_calls)
    for part in [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]:
        if part.id is not None:  # id, type and name come once, before the arguments
            assert part.index == len(names) and part.id.startswith("call_") and part.type == "function"
            names.append(part.function.name)
        else:
            assert part.type is None and part.function.name is None
        arguments[part.index] += part.function.arguments or ""
    assert names == [call.function.name for call in whole.message.tool_calls] and len(names) > 1
    assert arguments == [call.function.arguments for call in whole.message.tool_calls]
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason == "tool_calls"


def test_log_probabilities_of_a_stream_are_those_of_the_whole_answer(chat: Chat) -> None:
    chunks = list(chat(stream=True, logprobs=True, top_logprobs=2))
    streamed = [one for chunk in chunks if (told := chunk.choices[0].logprobs) for one in told.content]
    assert streamed == chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content


def test_the_events_of_a_response_are_in_order_and_add_up(client: OpenAI, responses: Responses) -> None:
    events = list(responses(stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * deltas,
        "output_text.done", "content_part.done", "output_item.done", "incomplete",
    ]  # fmt: skip
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == events[-1].response.output_text == responses.text()
    with client.responses.stream(**responses.defaults) as stream:
        for event in stream:
            assert event.type != "error"


def test_a_response_is_parsed_into_an_object(client: OpenAI, responses: Responses) -> None:
    fields: Any = {**responses.defaults, "max_output_tokens": 250}
    assert isinstance(client.responses.parse(**fields, text_format=Report).output_parsed, Report)
    with client.responses.stream(**fields, text_format=Report) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Report)


def test_the_output_of_a_response_is_input_of_the_next(responses: Responses) -> None:
    required = {"tools": RESPONSE_TOOLS, "tool_choice": "required", "max_output_tokens": 250}
    first = responses(**required, parallel_tool_calls=False)
    [call] = first.output
    assert follows(call) in ("clock", "weather")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "12:30"}
    told = {"tools": RESPONSE_TOOLS, "tool_choice": "none"}
    whole = responses(input=[{"role": "user", "content": "Hello!"}, *first.output, result], **told)
    after = responses(input=[result], previous_response_id=first.id, **told)
    assert whole.output_text == after.output_text
    said = responses(input=[{"role": "user", "content": "Hello!"}, *responses().output, MESSAGES[0]])
    assert said.output_text == responses(input="Hello!", previous_response_id=responses().id).output_text


def test_the_arguments_of_a_responses_call_come_in_fragments(responses: Responses, unhurried: None) -> None:
    long = {
        "type": "object",
        "properties": {"zone": {"type": "string", "minLength": 150}},
        "required": ["zone"],
    }
    tool = {"type": "function", "name": "clock", "parameters": long}
    events = list(responses(tools=[tool], tool_choice="required", max_output_tokens=250, stream=True))
    fragments = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    [done] = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert "".join(fragments) == done.arguments and len(fragments) > 1
    assert len(json.loads(done.arguments)["zone"]) >= 150


def test_a_conversation_goes_on_from_kept_responses_until_one_is_deleted(
    client: OpenAI, responses: Responses
) -> None:
    first = responses(input="Hello!")
    second = responses(input="And?", previous_response_id=first.id)
    third = responses(input="So?", previous_response_id=second.id)
    assert third.usage.input_tokens > second.usage.input_tokens > first.usage.input_tokens
    assert client.responses.retrieve(third.id).previous_response_id == second.id
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="one before it was deleted"):
        responses(previous_response_id=second.id)


def test_a_kept_response_comes_back_as_it_was_given(client: OpenAI, responses: Responses) -> None:
    told = {
        "metadata": {"a": "b"},
        "instructions": "Be brief.",
        "user": "Ayşe",
        "temperature": 0.5,
        "top_p": 0.9,
    }
    called = {"tools": RESPONSE_TOOLS, "tool_choice": "required", "max_output_tokens": 250}
    for fields in ({}, told, called):
        made = responses(**fields)
        assert client.responses.retrieve(made.id).to_dict() == made.to_dict()
        with responses(**fields, stream=True) as stream:
            *_, last = stream
        assert client.responses.retrieve(last.response.id).to_dict() == last.response.to_dict()


def test_every_log_probability_of_a_response_is_told_once(chat: Chat, responses: Responses) -> None:
    fields = {
        "include": ["message.output_text.logprobs"],
        "max_output_tokens": 200,
        "temperature": 1,
        "top_p": 0.9,
    }
    events = list(responses(**fields, stream=True))
    [done] = [event for event in events if event.type == "response.output_text.done"]
    [part] = events[-1].response.output[0].content
    assert len(done.logprobs) == len(part.logprobs) == events[-1].response.usage.output_tokens
    [whole] = responses(top_logprobs=1).output[0].content
    told = chat(logprobs=True, top_logprobs=1).choices[0].logprobs.content
    assert [token.to_dict() for token in whole.logprobs] == [token.to_dict() for token in told]


def test_the_items_of_a_response_come_in_pages(client: OpenAI, responses: Responses) -> None:
    made = responses(input=[{"role": "user", "content": str(number)} for number in range(25)])
    page = client.responses.input_items.list(made.id)
    assert len(page.data) == 20 and page.has_more
    rest = client.responses.input_items.list(made.id, after=page.data[-1].id)  # type: ignore[arg-type]
    assert [item.content[0].text for item in rest.data] == ["4", "3", "2", "1", "0"]  # type: ignore[union-attr]
    first = client.responses.input_items.list(made.id, order="asc", limit=2)
    assert [item.content[0].text for item in first.data] == ["0", "1"]  # type: ignore[union-attr]


def test_the_pages_of_items_end_also_where_ids_repeat(client: OpenAI, responses: Responses) -> None:
    items = [{"role": "user", "content": str(number), "id": "msg_mine"} for number in range(5)]
    made = responses(input=[*items, {"role": "assistant", "content": "And?"}])
    seen = list(client.responses.input_items.list(made.id, limit=2))
    assert [item.content[0].type for item in seen][:2] == ["output_text", "input_text"]  # type: ignore[union-attr]
    kept = list(client.responses.input_items.list(responses(input="Hello!").id, order="asc", limit=1))
    assert [item.content[0].text for item in kept] == ["Hello!"]  # type: ignore[union-attr]


def test_whether_a_tool_is_strict_changes_nothing_that_is_read(
    client: OpenAI, chat: Chat, responses: Responses
) -> None:
    def read(strict: Any) -> list[int]:
        tools = [{"type": "function", "function": {"name": "clock", "parameters": CLOCK, **strict}}]
        flat = [{"type": "function", "name": "clock", "parameters": CLOCK, **strict}]
        body = {"model": "mmrec", "messages": MESSAGES, "tools": tools}
        told: Any = client.post(str(client.base_url.join("/tokenize")), cast_to=object, body=body)
        made: Any = client.post("/sessions", cast_to=object, body=body)
        asked = chat(tools=tools, tool_choice="none").usage.prompt_tokens
        return [
            told["count"],
            made["length"],
            asked,
            responses(tools=flat, tool_choice="none").usage.input_tokens,
        ]

    assert read({}) == read({"strict": True}) == read({"strict": False})
    assert len({*read({})[:1], *read({})[2:]}) == 1  # one prompt in all of them


@pytest.mark.parametrize("more", [{}, {"tools": True}, {"logprobs": True}, {"n": 2}])
def test_answers_have_every_field_of_the_clients_types(client: OpenAI, more: dict[str, Any]) -> None:
    """The client itself takes what comes; its types say what OpenAI sends."""
    asked: dict[str, Any] = {"model": "mmrec", "temperature": 1, "seed": 3}
    chat = {**asked, "messages": MESSAGES, "max_tokens": 200, **more}
    respond = {"model": "mmrec", "input": "Hello!", "max_output_tokens": 200}
    if more.get("tools"):
        chat |= {"tools": TOOLS, "tool_choice": "required"}
        respond |= {"tools": RESPONSE_TOOLS, "tool_choice": "required"}
    if more.get("logprobs"):
        chat["top_logprobs"], respond["top_logprobs"] = 2, 2
    told = client.post("/chat/completions", cast_to=object, body=chat)
    answer = ChatCompletion.model_validate(told)
    reasons = {choice.finish_reason for choice in answer.choices}
    assert reasons <= ({"tool_calls", "length"} if more.get("tools") else {"stop", "length"})
    for chunk in events_of(client, "/chat/completions", {**chat, "stream_options": {"include_usage": True}}):
        ChatCompletionChunk.model_validate(chunk)
    made = client.post("/responses", cast_to=object, body=respond)
    for item in ModelResponse.model_validate(made).output:
        assert (item.id or "").startswith("msg_" if item.type == "message" else "fc_")
    for event in events_of(client, "/responses", respond):
        pydantic.TypeAdapter(ResponseStreamEvent).validate_python(event)
    if not more.get("tools"):
        body = {**asked, "prompt": "Once", **more, "logprobs": 2 if more.get("logprobs") else None}
        Completion.model_validate(client.post("/completions", cast_to=object, body=body))


def events_of(client: OpenAI, path: str, body: dict[str, Any]) -> list[Any]:
    """The events of a stream as they are."""
    raw = client.post(
        path, cast_to=str, body={**body, "stream": True}, options={"headers": {"Accept": "*/*"}}
    )
    lines = [line.removeprefix("data: ") for line in raw.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_the_items_of_several_calls_are_numbered_and_end_before_the_next_begins(responses: Responses) -> None:
    drawn = {"tools": RESPONSE_TOOLS, "tool_choice": "required", "max_output_tokens": 250, "temperature": 1.0}
    answers = (list(responses(**drawn, stream=True)) for _ in range(20))
    events = next(one for one in answers if len(one[-1].response.output) > 1)
    output = events[-1].response.output
    assert len({item.id for item in output}) == len(output)
    open_item = None
    for event in events:
        if event.type == "response.output_item.added":
            assert open_item is None and event.item.status == "in_progress"
            open_item = event.item.id
        elif event.type == "response.output_item.done":
            assert event.item == output[event.output_index] and event.item.id == open_item
            open_item = None
        elif event.type.startswith("response.function_call_arguments"):
            assert event.item_id == open_item == output[event.output_index].id


def test_a_response_that_fails_says_so_in_its_last_event(
    server: Server, responses: Responses, monkeypatch: pytest.MonkeyPatch, unhurried: None
) -> None:
    limits = server.context.limits
    monkeypatch.setattr(server.context, "limits", replace(limits, timeout_seconds=1.0))
    drawn = {
        "stream": True,
        "max_output_tokens": limits.max_tokens,
        "temperature": 1.0,
    }  # five seconds, or an end before
    answers = (list(responses(**drawn)) for _ in range(20))
    last = next(events[-1] for events in answers if events[-1].type != "response.completed")
    assert (last.type, last.response.status, last.response.error.code) == (
        "response.failed",
        "failed",
        "server_error",
    )
    assert last.response.usage is None and "longer than the server allows" in last.response.error.message


def test_embeddings_are_the_same_numbers_by_default_and_as_floats(server: Server, client: OpenAI) -> None:
    async def ask() -> Any:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
            return await one.embeddings.create(model="mmrec", input=["Merhaba", "Hello"])

    rows = asyncio.run(ask()).data
    plain = Embeddings(client).vectors(input=["Merhaba", "Hello"], encoding_format="float")
    assert [row.index for row in rows] == [0, 1]
    for row, vector in zip(rows, plain, strict=True):
        assert row.embedding == pytest.approx(vector, abs=1e-7) and len(vector) == 64


def test_raw_answers_have_their_headers(client: OpenAI, chat: Chat) -> None:
    raw = client.chat.completions.with_raw_response.create(**chat.defaults)
    assert raw.headers["content-type"] == "application/json" and raw.status_code == 200
    assert raw.parse().choices[0].message.content == chat.text()


def test_a_client_that_leaves_a_stream_leaves_nothing_behind(server: Server, chat: Chat) -> None:
    stream = chat(stream=True, max_tokens=250, temperature=1)
    next(iter(stream))
    stream.close()
    scheduler = server.context.registry.find("mmrec").model.scheduler
    waited = threading.Event()
    assert any(scheduler.num_running == 0 or waited.wait(0.05) for _ in range(100))


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (openai.BadRequestError, {"temperature": 5}),
        (openai.BadRequestError, {"colour": "red"}),
        (openai.NotFoundError, {"model": "gpt-4o"}),
        (openai.NotFoundError, {"session": "sess_none"}),
        (openai.PermissionDeniedError, {"extra_headers": {"Host": "example.org"}}),
    ],
)
def test_errors_are_those_of_the_client(
    client: OpenAI, error: type[openai.APIStatusError], fields: Any
) -> None:
    headers = fields.pop("extra_headers", None)
    body = {**Chat.defaults, **fields}
    with pytest.raises(error) as caught:
        client.post("/chat/completions", cast_to=object, body=body, options={"headers": headers or {}})
    assert set(caught.value.body) == {"message", "type", "param", "code"}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def closed(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that asks for keys."""
    model = small_model("mmrec", chat_tokenizer)
    running = Server([model], tmp_path_factory.mktemp("closed"), policy=AccessPolicy(require_keys=True))
    yield running
    running.stop()


def test_a_key_lets_in_and_has_its_limit(closed: Server) -> None:
    text, _ = create_key(closed.context.store, "Ayşe", requests_per_minute=2)
    with OpenAI(base_url=f"{closed.url}/v1", api_key="none", max_retries=0) as stranger:
        with pytest.raises(
            openai.AuthenticationError, match=r"unknown, revoked.*mmrec keys create"
        ) as refused:
            Chat(stranger)()
        assert refused.value.code == "invalid_api_key"
    with OpenAI(base_url=f"{closed.url}/v1", api_key=text, max_retries=0) as client:
        assert Chat(client)().choices and client.models.list().data
        with pytest.raises(openai.RateLimitError, match="2 requests a minute") as limited:
            Chat(client)()
    assert 1 <= int(limited.value.response.headers["retry-after"]) <= 60
    assert limited.value.code == "rate_limit_exceeded"


def test_what_a_model_dumped_goes_back_with_its_nulls(responses: Responses, chat: Chat) -> None:
    """Programs keep `item.model_dump()`, in which what is not there is null, by the client's own names."""
    required = {"tools": RESPONSE_TOOLS, "tool_choice": "required", "max_output_tokens": 250}
    [call] = responses(**required, parallel_tool_calls=False).output
    dumped = call.model_dump()
    assert {name for name, value in dumped.items() if value is None} >= {"caller", "namespace", "async_"}
    result = {
        "type": "function_call_output",
        "call_id": call.call_id,
        "output": "12:30",
        "id": None,
        "status": None,
    }
    told = {"tools": RESPONSE_TOOLS, "tool_choice": "none"}
    asked = {**MESSAGES[0], "type": None, "id": None}
    again = responses(input=[asked, dumped, result], **told)
    assert again.output_text == responses(input=[MESSAGES[0], call, result], **told).output_text
    [said] = again.output
    assert said.model_dump()["phase"] is None
    thought = ResponseReasoningItem.model_validate(
        {
            "id": "rs_1",
            "type": "reasoning",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "So."}],
        }
    )
    items = [asked, thought.model_dump(), said.model_dump(), asked]
    assert responses(input=items).output_text == responses(input=[asked, said, asked]).output_text
    message = chat(**REQUIRED).choices[0].message
    answer = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "12:30", "name": None}
    more = [
        chat.text(messages=[*MESSAGES, one, answer], tools=TOOLS, tool_choice="none")
        for one in (message, message.model_dump())
    ]
    assert more[0] == more[1]


def test_items_are_referred_to_in_place_of_being_sent(client: OpenAI, responses: Responses) -> None:
    """As Vercel's ai does in every second turn: the items themselves are those of an earlier response."""
    required = {"tools": RESPONSE_TOOLS, "tool_choice": "required", "max_output_tokens": 250}
    first = responses(**required, parallel_tool_calls=False)
    [call] = first.output
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "12:30"}
    [asked] = client.responses.input_items.list(first.id).data

    def refer(item: Any) -> dict[str, Any]:
        return {"type": "item_reference", "id": item.id}

    told = {"tools": RESPONSE_TOOLS, "tool_choice": "none"}
    whole = responses(input=[MESSAGES[0], call, result], **told)
    second = responses(input=[refer(asked), refer(call), result], **told)
    assert second.output_text == whole.output_text
    kept = client.responses.input_items.list(second.id, order="asc").data
    assert [item.type for item in kept] == ["message", "function_call", "function_call_output"]
    third = responses(input=[refer(call), result, *map(refer, second.output), MESSAGES[0]])
    assert third.output_text == responses(input=[call, result, *second.output, MESSAGES[0]]).output_text
    assert responses.refusal(input=[refer(call), refer(call), result]).param == "input[1]"
    assert responses.refusal(input=[call, refer(call), result]).param == "input[1]"
    unkept = responses(store=False).output
    client.responses.delete(first.id)
    for gone in (call, unkept[0]):
        with pytest.raises(openai.NotFoundError, match="send the item itself") as caught:
            responses(input=[MESSAGES[0], refer(gone)])
        assert (caught.value.param, caught.value.code) == ("input[1]", "item_not_found")


def test_what_has_no_effect_is_not_kept(client: OpenAI, responses: Responses) -> None:
    text = {
        "type": "output_text",
        "text": "Hello!",
        "annotations": [1],
        "logprobs": [1],
        "parsed": {"secret": 1},
    }
    made = responses(
        input=[
            MESSAGES[0],
            {"type": "reasoning", "summary": ["secret"], "encrypted_content": "secret", "id": "rs_1"},
            {"role": "assistant", "content": [text], "status": "incomplete"},
            {
                "type": "function_call",
                "call_id": "1",
                "name": "a",
                "arguments": "{}",
                "parsed_arguments": "secret",
            },
            {"type": "function_call_output", "call_id": "1", "output": [{**text, "type": "input_text"}]},
            MESSAGES[0],
        ]
    )
    page = client.responses.input_items.with_raw_response.list(made.id, order="asc")
    assert "secret" not in page.text
    _, reasoning, message, call, result, _ = page.parse().data
    assert (reasoning.id, reasoning.summary, message.status) == ("rs_1", [], "incomplete")
    [kept] = message.content
    assert kept.to_dict() == {"type": "output_text", "text": "Hello!", "annotations": []}
    assert (call.name, [part.to_dict() for part in result.output]) == (
        "a",
        [{"type": "input_text", "text": "Hello!"}],
    )


def test_kept_responses_are_read_to_a_limit_of_bytes(
    responses: Responses, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = responses(), responses()
    last = responses(previous_response_id=first.id)
    references = [{"type": "item_reference", "id": made.output[0].id} for made in (first, second)]

    def unread(*_: Any) -> None:
        raise AssertionError("this is not read")

    with monkeypatch.context() as patched:
        size = server.context.store.response_chain_size(None, last.id)
        patched.setattr("mm_rec.serving.protocol.responses._MAX_KEPT_BYTES", size)
        assert responses(previous_response_id=last.id).id
        patched.setattr("mm_rec.serving.protocol.responses._MAX_KEPT_BYTES", first_bytes(server, first.id))
        assert responses(input=[MESSAGES[0], references[0]]).id
        patched.setattr(server.context.store, "response_chain", unread)
        patched.setattr(server.context.store, "get_response", unread)
        for fields, field in (
            ({"previous_response_id": last.id}, "previous_response_id"),
            ({"input": [MESSAGES[0], *references]}, "input"),
        ):
            error = responses.refusal(**fields)
            assert (error.param, error.code) == (field, "context_length_exceeded")
            assert "are the most. " in error.message
        named = [{"type": "item_reference", "id": f"msg_{number:032x}0000"} for number in range(129)]
        error = responses.refusal(input=named)
        assert error.param == "input" and "129 responses; 128 are the most" in error.message


def first_bytes(server: Server, response_id: str) -> int:
    return server.context.store.responses_size(None, [response_id])


def test_an_item_of_another_key_is_not_there(closed: Server) -> None:
    made: list[Any] = []
    for name in ("Ayşe", "Ali"):
        key, _ = create_key(closed.context.store, name)
        with OpenAI(base_url=f"{closed.url}/v1", api_key=key, max_retries=0) as client:
            ask = Responses(client)
            if made:
                with pytest.raises(openai.NotFoundError):
                    ask(input=[MESSAGES[0], {"type": "item_reference", "id": made[0].id}])
            made += ask().output


def test_a_function_without_parameters_takes_none(chat: Chat, responses: Responses) -> None:
    for parameters in ({}, {"parameters": None}, {"parameters": {"type": "object", "properties": {}}}):
        tools = [{"type": "function", "function": {"name": "ping", **parameters}}]
        flat = [{"type": "function", "name": "ping", "parameters": None, **parameters, "strict": None}]
        for seed in range(4):
            [called] = chat.calls(
                tools=tools, tool_choice="required", parallel_tool_calls=False, temperature=1, seed=seed
            )
            assert (called.name, called.arguments) == ("ping", "{}")
        made = responses.calls(tools=flat, tool_choice="required", parallel_tool_calls=False, temperature=1)
        assert [item.arguments for item in made] == ["{}"]


def test_a_conversation_does_not_begin_with_the_result_of_a_call(chat: Chat, responses: Responses) -> None:
    result = {"role": "tool", "tool_call_id": "zz", "content": "3"}
    for first in (result, {"role": "function", "name": "a", "content": "3"}):
        error = chat.refusal(messages=[first, *MESSAGES])
        assert error.param == "messages[0].tool_call_id" and "before its result" in error.message
    assert (
        chat.refusal(messages=[*MESSAGES, {**result, "tool_call_id": ""}]).param == "messages[1].tool_call_id"
    )
    item = {"type": "function_call_output", "call_id": "zz", "output": "3"}
    assert responses.refusal(input=[item, MESSAGES[0]]).param == "input[0]"


def test_a_format_and_tools_together_whole_and_streamed(server: Server, client: OpenAI, chat: Chat) -> None:
    """The answer is a call, or an object of the class; the first token decides, which is forced here."""
    tools = [openai.pydantic_function_tool(Clock, name="clock")]
    tokenizer = server.context.registry.find("mmrec").model.tokenizer
    mark = tokenizer.convert_tokens_to_ids("<|tool_call|>")
    for bias, is_call in ((100, True), (-100, False)):
        fields: Any = {
            **chat.defaults, "tools": tools, "response_format": Report, "parallel_tool_calls": False,
            "max_tokens": 250, "logit_bias": {str(mark): bias},
        }  # fmt: skip
        choice = client.chat.completions.parse(**fields).choices[0]
        with client.chat.completions.stream(**fields) as stream:
            streamed = stream.get_final_completion().choices[0]
        for one in (choice, streamed):
            message = one.message
            if is_call:
                [call] = message.tool_calls or []
                assert isinstance(call.function.parsed_arguments, Clock) and not message.content
                assert one.finish_reason == "tool_calls"
            else:
                assert isinstance(message.parsed, Report) and not message.tool_calls
                assert one.finish_reason == "stop"
        assert (choice.message.content or "") == streamed.message.content


def test_a_response_with_a_format_and_tools_is_streamed_as_it_is_whole(
    client: OpenAI, responses: Responses
) -> None:
    """As instructor, the agents library and others send both always."""
    kinds = set()
    for number in range(6):
        fields: Any = {
            **responses.defaults, "tools": RESPONSE_TOOLS, "text_format": Report, "max_output_tokens": 250,
            "temperature": 0, "input": f"Hello {number}!",
        }  # fmt: skip
        whole = client.responses.parse(**fields)
        with client.responses.stream(**fields) as stream:
            streamed = stream.get_final_response()
        assert [item.type for item in whole.output] == [item.type for item in streamed.output]
        assert whole.output_text == streamed.output_text
        if whole.output[0].type == "message":
            assert isinstance(whole.output_parsed, Report)
        else:
            assert all(follows(item) for item in whole.output if item.type == "function_call")
        kinds.add(whole.output[0].type)
    assert kinds <= {"message", "function_call"}
