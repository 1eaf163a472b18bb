"""Validate conversations: list every issue that keeps one from being trained on."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mm_rec.data.conversations.conversation import ROLES, ChatMessage, Conversation, ToolCall
from mm_rec.data.conversations.issues import Issue
from mm_rec.data.conversations.message_formats import message_runs

_SYSTEMS = ("system", "developer")
# What a message may follow, system messages left out; results of tools are looked at with their calls.
_MAY_FOLLOW = {"user": (None, "assistant"), "assistant": ("user", "tool")}

Findings = Iterator[tuple[str, str]]  # kind and message


def check_conversation(conversation: Conversation, special_tokens: Collection[str] = ()) -> list[Issue]:
    """Everything that is wrong with a conversation.

    `special_tokens` are those of the chat template: written in a message, they would end it or begin another.
    """
    messages = conversation.messages
    if not messages:
        return [Issue("no-messages", conversation.location, "there are no messages")]
    found = [
        *_role_issues(messages),
        *_content_issues(messages),
        *_system_issues(messages),
        *_order_issues(messages),
        *_result_issues(messages),
        *_tool_issues(conversation.tools),
        *_call_issues(conversation),
        *_token_issues(conversation, special_tokens),
    ]
    return [Issue(kind, conversation.location, message) for kind, message in found]


def _role_issues(messages: Sequence[ChatMessage]) -> Findings:
    for number, message in enumerate(messages, start=1):
        if not message.role:
            yield "missing-role", f"message {number} has no role"
        elif message.role not in ROLES:
            yield "unknown-role", f"message {number} has the role {message.role!r}"


def _content_issues(messages: Sequence[ChatMessage]) -> Findings:
    for number, message in enumerate(messages, start=1):
        if message.role != "assistant" and message.tool_calls:
            yield "misplaced-call", f"message {number} ({message.role}) calls a tool"
        if message.role != "tool" and message.tool_call_id:
            yield "misplaced-call", f"message {number} ({message.role}) answers a call"
        if is_empty(message):
            kind = "empty-answer" if message.role == "assistant" else "empty-message"
            yield kind, f"message {number} ({message.role}) is empty"


def is_empty(message: ChatMessage) -> bool:
    """True where a message neither says nor calls anything; a tool may well return nothing."""
    return message.role != "tool" and not message.tool_calls and not message.content.strip()


def _system_issues(messages: Sequence[ChatMessage]) -> Findings:
    for role in _SYSTEMS:
        places = [number for number, message in enumerate(messages, start=1) if message.role == role]
        if len(places) > 1:
            yield "two-systems", f"messages {', '.join(map(str, places))} are all {role} messages"
        elif places and any(message.role not in _SYSTEMS for message in messages[: places[0] - 1]):
            yield "system-not-first", f"message {places[0]} is the {role} message"


def _order_issues(messages: Sequence[ChatMessage]) -> Findings:
    previous = None
    for number, message in enumerate(messages, start=1):
        if message.role in _SYSTEMS or message.role not in ROLES:
            continue
        if message.role in _MAY_FOLLOW and previous not in _MAY_FOLLOW[message.role]:
            yield "role-order", f"message {number} ({message.role}) {_after(previous)}"
        previous = message.role
    if previous != "assistant":
        yield "role-order", f"the last message is of the {previous or 'system'}, not an answer"


def _after(previous: str | None) -> str:
    if previous is None:
        return "is the first: a conversation begins with a question"
    return f"follows a message of the {previous}"


def _result_issues(messages: Sequence[ChatMessage]) -> Findings:
    """Results of tools against the calls before them: by ids where both have them, otherwise by number.

    One result without an id may stand for several calls. The last message may call without a result: that call is
    the answer.
    """
    for start, stop in message_runs(messages):
        caller = messages[start]
        calls = caller.tool_calls if caller.role == "assistant" else ()
        results = [message for message in messages[start:stop] if message.role == "tool"]
        known = {call.id for call in calls if call.id}
        seen: set[str] = set()
        for number, result in enumerate(results, start=stop - len(results) + 1):
            name = result.tool_call_id
            if not calls:
                yield "result-without-call", f"message {number} is the result of no call"
            elif known and name and name not in known:
                yield (
                    "result-without-call",
                    f"message {number} is the result of {name!r}, which was not called",
                )
            elif name and name in seen:
                yield "result-without-call", f"message {number} is a second result of {name!r}"
            seen.add(name)
        yield from _count_issues(start + 1, calls, results, stop == len(messages))


def _count_issues(
    number: int, calls: Sequence[ToolCall], results: Sequence[ChatMessage], at_end: bool
) -> Findings:
    if calls and len(results) > len(calls):
        message = f"message {number} calls {len(calls)} tools and {len(results)} results follow"
        yield "result-without-call", message
    for_all = len(results) == 1 and not results[0].tool_call_id
    if len(results) < len(calls) and not for_all and not (at_end and not results):
        message = f"message {number} calls {', '.join(call.name for call in calls)}, and {len(results)} results follow"
        yield "call-without-result", message


def _tool_issues(tools: Sequence[Mapping[str, Any]]) -> Findings:
    names: set[str] = set()
    for tool in tools:
        function = _function(tool)
        name = function.get("name")
        if tool.get("type", "function") != "function":
            yield "bad-tool-definition", f"the tool {name!r} is of the kind {tool['type']!r}, not a function"
        if not isinstance(name, str) or not name.strip():
            yield "bad-tool-definition", f"the name of a function is {name!r}"
            continue
        if name in names:
            yield "bad-tool-definition", f"{name!r} is defined twice"
        names.add(name)
        if problem := _schema_problem(function.get("parameters")):
            yield "bad-tool-definition", f"the parameters of {name!r} {problem}"


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function")
    return function if isinstance(function, Mapping) else {}


def _schema_problem(schema: Any) -> str:
    """Say why parameters are no JSON schema of an object, "" if they are; None is a function without parameters."""
    if schema is None or schema == {}:
        return ""
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        kind = schema.get("type") if isinstance(schema, Mapping) else schema
        return f"are no JSON schema of the type 'object' but of {kind!r}"
    properties, required = schema.get("properties"), schema.get("required")
    if properties is not None and not isinstance(properties, Mapping):
        return "have properties that are no object"
    if required is None:
        return ""
    if not isinstance(required, list | tuple) or not all(isinstance(name, str) for name in required):
        return "have a `required` that is no list of names"
    missing = [name for name in required if name not in (properties or {})]
    return f"require {missing[0]!r}, which they do not describe" if missing else ""


def _call_issues(conversation: Conversation) -> Findings:
    functions = {str(_function(tool).get("name")): _function(tool) for tool in conversation.tools}
    for number, message in enumerate(conversation.messages, start=1):
        for call in message.tool_calls:
            if call.name not in functions:
                defined = ", ".join(map(repr, functions)) or "none"
                yield (
                    "call-without-definition",
                    f"message {number} calls {call.name!r}; defined tools: {defined}",
                )
            elif not _schema_problem(schema := functions[call.name].get("parameters")):
                for problem in _argument_problems(call, schema or {}):
                    yield "bad-arguments", f"message {number} calls {call.name!r} {problem}"


def _argument_problems(call: ToolCall, schema: Mapping[str, Any]) -> Iterator[str]:
    """Names alone are compared; a schema that gives properties means these and no others, unless it says so."""
    properties = schema.get("properties")
    for name in schema.get("required") or ():
        if name not in call.arguments:
            yield f"without the required parameter {name!r}"
    closed = schema.get("additionalProperties") is False
    if closed or (properties and "additionalProperties" not in schema):
        for name in call.arguments:
            if name not in (properties or {}):
                yield f"with the unknown parameter {name!r}"


def _token_issues(conversation: Conversation, special_tokens: Collection[str]) -> Findings:
    if not special_tokens:
        return
    pattern = token_pattern(frozenset(special_tokens))
    for number, message in enumerate(conversation.messages, start=1):
        texts = [message.content]
        texts += [_json({call.name: call.arguments}) for call in message.tool_calls]
        if found := sorted({token for text in texts for token in pattern.findall(text)}):
            yield "special-token", f"message {number} ({message.role}) has {', '.join(found)} in its text"
    if conversation.tools and (found := sorted(set(pattern.findall(_json(list(conversation.tools)))))):
        yield "special-token", f"the definitions of the tools have {', '.join(found)} in their text"


@functools.cache
def token_pattern(tokens: frozenset[str]) -> re.Pattern[str]:
    """Return the pattern that finds special tokens in text."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
