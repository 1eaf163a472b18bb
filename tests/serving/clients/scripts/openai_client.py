"""OpenAI's own client for Python, from an early 1.x on: what that does not know yet is asked by `create` alone."""

from __future__ import annotations

import json
from typing import Any

import openai
from cases import LONG, MODEL, QUESTIONS, SHORT, called, report, usage
from pydantic import BaseModel
from weather import TOOL, Days, Degrees, Forms, Place, Report, weather, weather_of

client = openai.OpenAI(max_retries=0)
CHAT: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": SHORT}
RESPONSE: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_output_tokens": SHORT}
FUNCTION: Any = {"type": "function", **TOOL, "strict": False}


def said(text: str) -> list[Any]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def chat() -> Any:
    """One answer."""
    answer = client.chat.completions.create(messages=said(QUESTIONS[0]), **CHAT)
    return {"text": answer.choices[0].message.content, "usage": usage(answer.usage)}


def chat_by_responses() -> Any:
    """One answer."""
    answer = client.responses.create(input=QUESTIONS[0], **RESPONSE)
    return {"text": answer.output_text, "usage": usage(answer.usage)}


def stream() -> Any:
    """The pieces of an answer."""
    chunks = client.chat.completions.create(messages=said(QUESTIONS[0]), stream=True, **CHAT)
    return [chunk.choices[0].delta.content or "" for chunk in chunks]


def stream_by_helper() -> Any:
    """The pieces of an answer, and what the client put together of them."""
    with client.chat.completions.stream(messages=said(QUESTIONS[0]), **CHAT) as events:
        pieces = [event.delta for event in events if event.type == "content.delta"]
        assert events.get_final_completion().choices[0].message.content == "".join(pieces)
    return pieces


def stream_by_responses() -> Any:
    """The pieces of an answer, and what the client put together of them."""
    with client.responses.stream(input=QUESTIONS[0], **RESPONSE) as events:
        pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert events.get_final_response().output_text == "".join(pieces)
    return pieces


def tools() -> Any:
    """A call, its result, and an answer; the message of the call goes back as the client has it."""
    offered: Any = [{"type": "function", "function": TOOL}]
    fields = {**CHAT, "max_tokens": LONG}
    first = (
        client.chat.completions.create(messages=said(QUESTIONS[0]), tools=offered, **fields)
        .choices[0]
        .message
    )
    [call] = first.tool_calls or []
    result: Any = {
        "role": "tool",
        "tool_call_id": call.id,
        "content": weather_of(call.function.arguments),
    }
    history: Any = [*said(QUESTIONS[0]), first, result]
    last = client.chat.completions.create(messages=history, tools=offered, **fields).choices[0].message
    return {"called": called, "answer": last.content}


def tools_by_responses() -> Any:
    """A call, its result, and an answer; all that was written goes back as the client dumps it."""
    fields = {**RESPONSE, "max_output_tokens": LONG, "tools": [FUNCTION]}
    first = client.responses.create(input=QUESTIONS[0], **fields)
    [call] = [item for item in first.output if item.type == "function_call"]
    result = {
        "type": "function_call_output", "call_id": call.call_id, "output": weather_of(call.arguments),
    }  # fmt: skip
    history: Any = [*said(QUESTIONS[0]), *[item.model_dump() for item in first.output], result]
    return {"called": called, "answer": client.responses.create(input=history, **fields).output_text}


def structured() -> Any:
    """An object by `parse`."""
    fields = {**CHAT, "max_tokens": LONG}
    parsed = client.chat.completions.parse(messages=said(QUESTIONS[0]), response_format=Report, **fields)
    assert isinstance(parsed.choices[0].message.parsed, Report)
    return parsed.choices[0].message.parsed.model_dump()


def structured_by_create() -> Any:
    """An object, whose schema is written by hand."""
    wanted: Any = {
        "type": "json_schema", "json_schema": {"name": "report", "schema": Report.model_json_schema()},
    }  # fmt: skip
    fields = {**CHAT, "max_tokens": LONG}
    answer = client.chat.completions.create(messages=said(QUESTIONS[0]), response_format=wanted, **fields)
    return Report.model_validate_json(answer.choices[0].message.content or "").model_dump()


def structured_by_responses() -> Any:
    """An object by `parse`."""
    fields = {**RESPONSE, "max_output_tokens": LONG}
    parsed = client.responses.parse(input=QUESTIONS[0], text_format=Report, **fields).output_parsed
    assert isinstance(parsed, Report)
    return parsed.model_dump()


def schema(wanted: type[BaseModel]) -> Any:
    """An object as the model wrote it, which the client could read."""
    fields = {**RESPONSE, "max_output_tokens": LONG}
    answer = client.responses.parse(input=QUESTIONS[0], text_format=wanted, **fields)
    assert isinstance(answer.output_parsed, wanted)
    return json.loads(answer.output_text)


def schema_of_records() -> Any:
    """An object with free names."""
    return schema(Degrees)


def schema_of_sets() -> Any:
    """An array without repetition."""
    return schema(Days)


def schema_of_forms() -> Any:
    """Formats and large bounds."""
    return schema(Forms)


def combined() -> Any:
    """A call, its result, and an object, with tools and format in every request."""
    fields: dict[str, Any] = {**CHAT, "max_tokens": LONG, "response_format": Report}
    fields["tools"] = [openai.pydantic_function_tool(Place, name="weather")]
    first = client.chat.completions.parse(messages=said(QUESTIONS[0]), **fields).choices[0].message
    [call] = first.tool_calls or []
    place = call.function.parsed_arguments
    assert isinstance(place, Place)
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": weather(place.city, place.day)}
    history: Any = [*said(QUESTIONS[0]), first, result]
    last = client.chat.completions.parse(messages=history, **fields).choices[0].message.parsed
    return {"called": called, "output": last and last.model_dump()}


def combined_by_responses() -> Any:
    """A call, its result, and an object, with tools and format in every request."""
    fields: dict[str, Any] = {
        **RESPONSE,
        "max_output_tokens": LONG,
        "text_format": Report,
        "tools": [FUNCTION],
    }
    first = client.responses.parse(input=QUESTIONS[0], **fields)
    [call] = [item for item in first.output if item.type == "function_call"]
    result: Any = {
        "type": "function_call_output", "call_id": call.call_id, "output": weather_of(call.arguments),
    }  # fmt: skip
    last = client.responses.parse(input=[result], previous_response_id=first.id, **fields).output_parsed
    return {"called": called, "output": last and last.model_dump()}


def embeddings() -> Any:
    """Vectors, in the form that the client asks for by itself."""
    return [row.embedding for row in client.embeddings.create(model=MODEL, input=list(QUESTIONS)).data]


def turns() -> Any:
    """Several turns, with the client's messages sent back."""
    history: list[Any] = []
    for question in QUESTIONS:
        history += said(question)
        history.append(client.chat.completions.create(messages=history, **CHAT).choices[0].message)
    return [message.content for message in history[1::2]]


def turns_by_responses() -> Any:
    """Several turns, each going on from the one before."""
    answers: list[Any] = []
    for question in QUESTIONS:
        before: Any = {"previous_response_id": answers[-1].id} if answers else {}
        answers.append(client.responses.create(input=question, **RESPONSE, **before))
    return [answer.output_text for answer in answers]


def turns_by_items() -> Any:
    """Several turns, each sent with all items of the ones before, as the client dumps them."""
    history: list[Any] = []
    answers = []
    for question in QUESTIONS:
        history += said(question)
        answer = client.responses.create(
            input=history, store=False, include=["reasoning.encrypted_content"], **RESPONSE
        )
        history += [item.model_dump() for item in answer.output]
        answers.append(answer.output_text)
    return answers


report(globals())
