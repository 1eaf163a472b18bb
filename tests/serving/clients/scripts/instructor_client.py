"""instructor in its modes for OpenAI."""

from __future__ import annotations

from typing import Any

import instructor
import pydantic
from cases import LONG, MODEL, QUESTIONS, SHORT, report
from instructor import Mode
from openai import OpenAI
from weather import Report

MESSAGES: Any = [{"role": "user", "content": QUESTIONS[0]}]


class Anything(pydantic.BaseModel):
    """An object; in mode JSON the server holds the model to no more than that."""

    model_config = pydantic.ConfigDict(extra="allow")


def create(mode: Mode, wanted: type[pydantic.BaseModel] = Report, **fields: Any) -> Any:
    """An object in that mode; the first answer must be right."""
    client = instructor.from_openai(OpenAI(max_retries=0), mode=mode)
    found = client.create(
        model=MODEL, messages=MESSAGES, response_model=wanted, temperature=0, max_retries=0, **fields
    )
    assert isinstance(found, wanted)
    return found.model_dump()


def structured() -> Any:
    """By tools, the default."""
    return create(Mode.TOOLS, max_tokens=LONG)


def structured_by_schema() -> Any:
    """By `response_format`."""
    return create(Mode.JSON_SCHEMA, max_tokens=LONG)


def structured_by_responses() -> Any:
    """By tools of responses."""
    return create(Mode.RESPONSES_TOOLS, max_output_tokens=LONG)


def json_object() -> Any:
    """By `json_object`."""
    return create(Mode.JSON, Anything, max_tokens=LONG)


def structured_by_stream() -> Any:
    """The last of an object's states while it is written."""
    client = instructor.from_openai(OpenAI(max_retries=0))
    states = client.create_partial(
        model=MODEL, messages=MESSAGES, response_model=Report, temperature=0, max_tokens=LONG
    )
    *_, last = states
    return last.model_dump()


def chat() -> Any:
    """An answer that is text."""
    client = instructor.from_openai(OpenAI(max_retries=0))
    answer = client.create(
        model=MODEL, messages=MESSAGES, response_model=None, temperature=0, max_tokens=SHORT
    )
    return {"text": answer.choices[0].message.content}


report(globals())
