"""langchain-openai: ChatOpenAI over chat completions and over responses, and OpenAIEmbeddings."""

from __future__ import annotations

from typing import Any

from cases import LONG, MODEL, QUESTIONS, SHORT, called, report, usage
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from weather import Report, weather

weather_tool = tool(weather)


def model(tokens: int = SHORT, **fields: Any) -> ChatOpenAI:
    """The model; only what a user sets is set."""
    return ChatOpenAI(model=MODEL, temperature=0, max_tokens=tokens, max_retries=0, **fields)


def chat() -> Any:
    """One answer."""
    answer = model().invoke(QUESTIONS[0])
    return {"text": answer.text, "usage": usage(answer.usage_metadata)}


def chat_by_responses() -> Any:
    """One answer."""
    answer = model(use_responses_api=True).invoke(QUESTIONS[0])
    return {"text": answer.text, "usage": usage(answer.usage_metadata)}


def stream() -> Any:
    """The pieces of an answer."""
    return [chunk.text for chunk in model().stream(QUESTIONS[0])]


def stream_by_responses() -> Any:
    """The pieces of an answer."""
    return [chunk.text for chunk in model(use_responses_api=True).stream(QUESTIONS[0])]


def tool_round(bound: Any) -> Any:
    """A call, its result, and the last message."""
    history: list[Any] = [HumanMessage(QUESTIONS[0])]
    first = bound.invoke(history)
    [call] = first.tool_calls
    result = weather_tool.invoke(call)
    assert isinstance(result, ToolMessage)
    return bound.invoke([*history, first, result])


def tools() -> Any:
    """A call, its result, and an answer."""
    last = tool_round(model(LONG).bind_tools([weather_tool]))
    return {"called": called, "answer": last.text}


def tools_by_responses() -> Any:
    """A call, its result, and an answer."""
    last = tool_round(model(LONG, use_responses_api=True).bind_tools([weather_tool]))
    return {"called": called, "answer": last.text}


def structured() -> Any:
    """An object, by the default method."""
    return model(LONG).with_structured_output(Report).invoke(QUESTIONS[0]).model_dump()


def structured_by_tools() -> Any:
    """An object, by a function."""
    wanted = model(LONG).with_structured_output(Report, method="function_calling")
    return wanted.invoke(QUESTIONS[0]).model_dump()


def structured_by_responses() -> Any:
    """An object, by the default method."""
    return (
        model(LONG, use_responses_api=True).with_structured_output(Report).invoke(QUESTIONS[0]).model_dump()
    )


def combined() -> Any:
    """A call, its result, and an object, with tools and format in every request."""
    last = tool_round(model(LONG).bind_tools([weather_tool], response_format=Report, strict=True))
    return {"called": called, "output": last.additional_kwargs["parsed"].model_dump()}


def combined_by_responses() -> Any:
    """A call, its result, and an object, with tools and format in every request."""
    bound = model(LONG, use_responses_api=True).bind_tools(
        [weather_tool], response_format=Report, strict=True
    )
    return {"called": called, "output": tool_round(bound).additional_kwargs["parsed"].model_dump()}


def embeddings() -> Any:
    """Vectors, of texts rather than of another tokenizer's numbers."""
    return OpenAIEmbeddings(model=MODEL, check_embedding_ctx_length=False).embed_documents(list(QUESTIONS))


def conversation(chosen: ChatOpenAI) -> list[str]:
    """Several turns, with all messages sent back."""
    history: list[Any] = []
    for question in QUESTIONS:
        history.append(HumanMessage(question))
        history.append(chosen.invoke(history))
    return [message.text for message in history[1::2]]


def turns() -> Any:
    """Several turns of chat completions."""
    return conversation(model())


def turns_by_responses() -> Any:
    """Several turns, each going on from the one before."""
    return conversation(model(use_responses_api=True, use_previous_response_id=True))


def turns_by_items() -> Any:
    """Several turns, each sent with all items of the ones before."""
    return conversation(model(use_responses_api=True))


report(globals())
