"""openai-agents: runs over responses, its default, and over chat completions."""

from __future__ import annotations

import asyncio
from typing import Any

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from cases import LONG, MODEL, QUESTIONS, SHORT, called, report
from openai import AsyncOpenAI
from weather import Report, weather

FEW = 4  # requests of one run
loop = asyncio.Runner()  # one for all: the client belongs to the loop that it was first used in
set_tracing_disabled(True)  # it would send what happens to OpenAI


def agent(tokens: int = SHORT, **fields: Any) -> Agent[Any]:
    """An agent over responses, unless a model is named."""
    settings = ModelSettings(temperature=0, max_tokens=tokens)
    return Agent(**{"name": "Weather", "model": MODEL, "model_settings": settings, **fields})


def run(chosen: Agent[Any], said: Any, **fields: Any) -> Any:
    """The result of a run."""
    return loop.run(Runner.run(chosen, said, max_turns=FEW, **fields))


def chat_model() -> OpenAIChatCompletionsModel:
    """The same model over chat completions."""
    return OpenAIChatCompletionsModel(MODEL, AsyncOpenAI(max_retries=0))


def answer(chosen: Agent[Any]) -> Any:
    """One answer, and its tokens."""
    result = run(chosen, QUESTIONS[0])
    told = result.context_wrapper.usage
    return {"text": result.final_output, "usage": [told.input_tokens, told.output_tokens, told.total_tokens]}


def chat() -> Any:
    """One answer."""
    return answer(agent(model=chat_model()))


def chat_by_responses() -> Any:
    """One answer."""
    return answer(agent())


async def pieces(chosen: Agent[Any]) -> list[str]:
    """The pieces of an answer."""
    events = Runner.run_streamed(chosen, QUESTIONS[0], max_turns=FEW).stream_events()
    raw = [event.data async for event in events if event.type == "raw_response_event"]
    return [one.delta for one in raw if one.type == "response.output_text.delta"]


def stream() -> Any:
    """The pieces of an answer."""
    return loop.run(pieces(agent(model=chat_model())))


def stream_by_responses() -> Any:
    """The pieces of an answer."""
    return loop.run(pieces(agent()))


def tool_round(**fields: Any) -> Any:
    """A call, its result, and what the run ends with."""
    chosen = agent(LONG, tools=[function_tool(weather)], **fields)
    return run(chosen, QUESTIONS[0]).final_output


def tools() -> Any:
    """A call, its result, and an answer."""
    return {"answer": tool_round(model=chat_model()), "called": called}


def tools_by_responses() -> Any:
    """A call, its result, and an answer."""
    return {"answer": tool_round(), "called": called}


def output(**fields: Any) -> Any:
    """An object."""
    found = run(agent(LONG, output_type=Report, **fields), QUESTIONS[0])
    return found.final_output.model_dump()


def structured() -> Any:
    """An object."""
    return output(model=chat_model())


def structured_by_responses() -> Any:
    """An object."""
    return output()


def combined() -> Any:
    """A call, its result, and an object, with tools and format in every request."""
    return {"output": output(model=chat_model(), tools=[function_tool(weather)]), "called": called}


def combined_by_responses() -> Any:
    """A call, its result, and an object, with tools and format in every request."""
    return {"output": output(tools=[function_tool(weather)]), "called": called}


def conversation(chosen: Agent[Any]) -> list[str]:
    """Several turns, each sent with all items of the ones before."""
    history: list[Any] = []
    answers = []
    for question in QUESTIONS:
        result = run(chosen, [*history, {"role": "user", "content": question}])
        history = result.to_input_list()
        answers.append(result.final_output)
    return answers


def turns() -> Any:
    """Several turns of chat completions."""
    return conversation(agent(model=chat_model()))


def turns_by_items() -> Any:
    """Several turns, each sent with all items of the ones before."""
    return conversation(agent())


def turns_by_responses() -> Any:
    """Several turns, each going on from the one before."""
    answers: list[Any] = []
    for question in QUESTIONS:
        before = answers[-1].last_response_id if answers else None
        answers.append(run(agent(), question, previous_response_id=before))
    return [result.final_output for result in answers]


report(globals())
