"""Items of the Responses API, those of a request and of stored responses, as messages and as lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from mm_rec.serving.errors import ApiError
from mm_rec.serving.protocol.request_model import RequestModel, effective_fields
from mm_rec.serving.protocol.response_schemas import (
    AllowedResponseTools,
    ChosenTool,
    FunctionCall,
    FunctionCallOutput,
    InputMessage,
    ResponseRequest,
)
from mm_rec.serving.protocol.schemas import (
    AllowedTools,
    AllowedToolsChoice,
    CalledFunction,
    Function,
    Message,
    MessageToolCall,
    NamedFunction,
    NamedTool,
    Tool,
    content_text,
)
from mm_rec.store.tables import StoredResponse

Item = dict[str, Any]
_IDS = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
_EMPTY_ASSISTANT: Item = {"type": "message", "role": "assistant", "content": ""}


def input_items(body: ResponseRequest) -> list[Item]:
    """Return the items of the input of a request: what has an effect of them, so that nothing else is kept."""
    if isinstance(body.input, str):
        return [{"type": "message", "role": "user", "content": body.input}]
    return [_dump(item, "id", "status") for item in body.input]


def _dump(part: RequestModel, *kept: str) -> Item:
    """Return a part of a request without the fields that have no effect, but for those of these names."""
    given = {name: getattr(part, name, None) for name in (*kept, *effective_fields(type(part)))}
    return {
        name: [_dump(one) for one in value] if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None
    }


def item_id(kind: str, response_id: str, number: int, *, is_input: bool = False) -> str:
    """Return the id of an item of a response, which it is found by: that of the response is within it."""
    return f"{_IDS[kind]}_{response_id.partition('_')[2]}{'0' if is_input else '1'}{number:03x}"


_ID_DIGITS = 32  # of a response, within the ids of its items


def referenced_responses(items: Iterable[Item]) -> set[str]:
    """Return the ids of the responses that references among the items name."""
    return {_response_id(item["id"]) for item in items if item["type"] == "item_reference"}


def _response_id(item_id: str) -> str:
    return "resp_" + item_id.partition("_")[2][:_ID_DIGITS]


def resolve_references(
    items: list[Item], find_response: Callable[[str], StoredResponse | None]
) -> list[Item]:
    """Return items with those that were kept in place of references to them.

    Raises ApiError: 404 for an item that is not kept, 400 for one that is there twice.
    """
    kept = cache(find_response)  # the items of one response are mostly referred to together
    seen = {item.get("id") for item in items if item["type"] != "item_reference"}
    resolved: list[Item] = []
    for number, item in enumerate(items):
        if item["type"] != "item_reference":
            resolved.append(item)
            continue
        if item["id"] in seen:
            why = f"the item {item['id'][:100]!r} is in the input already; leave one of them out"
            raise ApiError(400, f"input[{number}]: {why}", f"input[{number}]", "invalid_value")
        seen.add(item["id"])
        resolved.append(_referenced_item(item["id"], kept, number))
    return resolved


def _referenced_item(wanted: str, find_response: Callable[[str], StoredResponse | None], number: int) -> Item:
    row = find_response(_response_id(wanted))
    items: list[Item] = [] if row is None else [*row.input_items, *row.response["output"]]
    for item in items:
        if item["id"] == wanted:
            return item
    why = f"there is no item {wanted[:100]!r} in the responses that were kept; send the item itself"
    raise ApiError(404, f"input[{number}]: {why}", f"input[{number}]", "item_not_found")


@dataclass
class _PendingMessage:
    """A message in the making: the field it comes from, its item, and the assistant's calls that belong to it."""

    place: str
    item: Item
    calls: list[MessageToolCall] = field(default_factory=list)
    reasoning: str = ""

    def message(self) -> Message:
        if self.item["type"] == "function_call_output":
            output = FunctionCallOutput.model_validate(self.item)
            return Message(role="tool", content=content_text(output.output), tool_call_id=output.call_id)
        pending = InputMessage.model_validate(self.item)
        # A message of a chat has a limit of calls; here that of the items holds.
        return Message.model_construct(
            role=pending.role, content=content_text(pending.content), tool_calls=self.calls or None,
            reasoning_content=self.reasoning or None,
        )  # fmt: skip


def to_messages(
    body: ResponseRequest, new: Sequence[Item], earlier: Iterable[Item]
) -> tuple[list[Message], list[str]]:
    """Return earlier and new items as messages, and the field of the request that each comes from."""
    places = ["input"] if isinstance(body.input, str) else [f"input[{number}]" for number in range(len(new))]
    pending: list[_PendingMessage] = []
    if body.instructions:
        pending.append(
            _PendingMessage(
                "instructions", {**_EMPTY_ASSISTANT, "role": "system", "content": body.instructions}
            )
        )
    reasoning = ""
    placed = [("previous_response_id", item) for item in earlier] + list(zip(places, new, strict=True))
    for place, item in placed:
        if item["type"] == "reasoning":  # it belongs to the message or call after it
            reasoning = "".join(part["text"] for part in item.get("content") or [])
            continue
        if item["type"] != "function_call":
            is_answer = item.get("role") == "assistant"
            pending.append(_PendingMessage(place, item, reasoning=reasoning if is_answer else ""))
            reasoning = ""
            continue
        # Calls belong to the assistant's message before them.
        if not pending or pending[-1].item.get("role") != "assistant":
            pending.append(_PendingMessage(place, _EMPTY_ASSISTANT, reasoning=reasoning))
            reasoning = ""
        call = FunctionCall.model_validate(item)
        function = CalledFunction(name=call.name, arguments=call.arguments)
        pending[-1].calls.append(MessageToolCall(id=call.call_id, function=function))
        pending[-1].place = place
    return [one.message() for one in pending], [one.place for one in pending]


def to_chat_tools(body: ResponseRequest) -> list[Tool]:
    """Convert the tools to those of chat completions."""
    return [
        Tool(type="function", function=Function(**tool.model_dump(exclude={"type"})))
        for tool in body.tools or []
    ]


def to_tool_choice(body: ResponseRequest) -> str | NamedTool | AllowedToolsChoice | None:
    """Convert tool_choice to that of chat completions."""
    match body.tool_choice:
        case ChosenTool() as chosen:
            return _named(chosen)
        case AllowedResponseTools(mode=mode, tools=tools):
            allowed = AllowedTools(mode=mode, tools=[_named(tool) for tool in tools])
            return AllowedToolsChoice(type="allowed_tools", allowed_tools=allowed)
        case choice:
            return choice


def _named(chosen: ChosenTool) -> NamedTool:
    return NamedTool(type="function", function=NamedFunction(name=chosen.name))


def to_stored_items(items: Iterable[Item], response_id: str) -> list[Item]:
    """Return items as GET /v1/responses/{id}/input_items shows them: with ids, and content in parts."""
    return [_to_stored_item(item, response_id, number) for number, item in enumerate(items)]


def _to_stored_item(item: Item, response_id: str, number: int) -> Item:
    made = item_id(item["type"], response_id, number, is_input=True)
    item = {"id": made, "status": "completed", **item}
    if isinstance(item.get("content"), str):
        kind = "output_text" if item["role"] == "assistant" else "input_text"
        item["content"] = [{"type": kind, "text": item["content"]}]
    # Clients expect these two, though nothing reads them.
    if item["type"] == "reasoning":
        item["summary"] = []
    if "content" in item:
        item["content"] = [_with_annotations(part) for part in item["content"]]
    return item


def _with_annotations(part: Item) -> Item:
    return {**part, "annotations": []} if part["type"] == "output_text" else part
