"""pydantic-ai: agents over chat completions and over responses."""

from __future__ import annotations

import asyncio
from typing import Any

from cases import LONG, MODEL, QUESTIONS, SHORT, called, report
from pydantic_ai import Agent, Embedder, NativeOutput, UsageLimits
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from weather import Report, weather

CHAT, RESPONSES = OpenAIChatModel(MODEL), OpenAIResponsesModel(MODEL)
FEW = UsageLimits(request_limit=4)


def agent(model: Any, tokens: int = SHORT, **fields: Any) -> Agent[Any, Any]:
    """An agent of that model."""
    return Agent(model, model_settings={"temperature": 0, "max_tokens": tokens}, **fields)


def answer(model: Any) -> Any:
    """One answer, and its tokens."""
    result = agent(model).run_sync(QUESTIONS[0], usage_limits=FEW)
    told = result.usage
    return {"text": result.output, "usage": [told.input_tokens, told.output_tokens, told.total_tokens]}


def chat() -> Any:
    """One answer."""
    return answer(CHAT)


def chat_by_responses() -> Any:
    """One answer."""
    return answer(RESPONSES)


async def pieces(model: Any) -> list[str]:
    """The pieces of an answer."""
    async with agent(model).run_stream(QUESTIONS[0]) as result:
        return [piece async for piece in result.stream_text(delta=True, debounce_by=None)]


def stream() -> Any:
    """The pieces of an answer."""
    return asyncio.run(pieces(CHAT))


def stream_by_responses() -> Any:
    """The pieces of an answer."""
    return asyncio.run(pieces(RESPONSES))


def tool_round(model: Any) -> Any:
    """A call, its result, and an answer."""
    result = agent(model, LONG, tools=[weather]).run_sync(QUESTIONS[0], usage_limits=FEW)
    return {"called": called, "answer": result.output}


def tools() -> Any:
    """A call, its result, and an answer."""
    return tool_round(CHAT)


def tools_by_responses() -> Any:
    """A call, its result, and an answer."""
    return tool_round(RESPONSES)


def output(model: Any, wanted: Any, **fields: Any) -> Any:
    """An object."""
    result = agent(model, LONG, output_type=wanted, **fields).run_sync(QUESTIONS[0], usage_limits=FEW)
    assert isinstance(result.output, Report)
    return result.output.model_dump()


def structured() -> Any:
    """An object, by the output tool that is the default."""
    return output(CHAT, Report)


def structured_by_schema() -> Any:
    """An object, by `response_format`."""
    return output(CHAT, NativeOutput(Report))


def structured_by_responses() -> Any:
    """An object, by the output tool that is the default."""
    return output(RESPONSES, Report)


def structured_by_responses_and_schema() -> Any:
    """An object, by `text.format`."""
    return output(RESPONSES, NativeOutput(Report))


def combined() -> Any:
    """A call, its result, and an object by the output tool."""
    return {"output": output(CHAT, Report, tools=[weather]), "called": called}


def combined_by_schema() -> Any:
    """A call, its result, and an object by `response_format`."""
    return {"output": output(CHAT, NativeOutput(Report), tools=[weather]), "called": called}


def combined_by_responses() -> Any:
    """A call, its result, and an object by the output tool."""
    return {"output": output(RESPONSES, Report, tools=[weather]), "called": called}


def combined_by_responses_and_schema() -> Any:
    """A call, its result, and an object by `text.format`."""
    return {"output": output(RESPONSES, NativeOutput(Report), tools=[weather]), "called": called}


def embeddings() -> Any:
    """Vectors."""
    found = Embedder(OpenAIEmbeddingModel(MODEL)).embed_sync(list(QUESTIONS), input_type="document")
    return [list(vector) for vector in found.embeddings]


def conversation(model: Any) -> list[str]:
    """Several turns, with all messages sent back."""
    history: list[Any] = []
    answers = []
    for question in QUESTIONS:
        result = agent(model).run_sync(question, message_history=history, usage_limits=FEW)
        history = result.all_messages()
        answers.append(result.output)
    return answers


def turns() -> Any:
    """Several turns of chat completions."""
    return conversation(CHAT)


def turns_by_items() -> Any:
    """Several turns, each sent with all items of the ones before."""
    return conversation(RESPONSES)


report(globals())
