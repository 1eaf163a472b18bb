"""The grammars that text can be held to, as llguidance reads them: JSON of a schema, tool calls in each chat layout.

JSON is written on one line, as `json.dumps` writes it: that is how the chat templates write calls, and white space has
no end when a model may choose it.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from mm_rec.errors import ConfigError
from mm_rec.tokenizers.chat_template import Layout

MOST_CALLS = 16  # in one message
MOST_NESTED = 60  # schemas within schemas
MOST_LITERALS = 100  # of patterns, that an ending is sought with

# Python's names for JSON schema's types, as the function definitions of BFCL and Gorilla have them.
_TYPES = {
    "dict": "object",
    "float": "number",
    "double": "number",
    "int": "integer",
    "bool": "boolean",
    "str": "string",
    "list": "array",
    "tuple": "array",
}
_ONE = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
_LIST = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
# Beside these, properties are not all that describes an object, so that it cannot be closed.
_OPEN = (
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "$ref",
    "anyOf",
    "oneOf",
    "allOf",
)

_PATTERN = re.compile(r'"pattern": ("(?:[^"\\]|\\.)*")')
# Letters, and signs that are escaped, in a row, before what repeats the last of them.
_LITERAL = re.compile(r"(?:\\[^\w\s]|[^\\\[\](){}.*+?|^$])+(?![*+?{])")

_STYLE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}

# How each layout writes a call: before the name, between name and arguments, and after them.
_CALLS = {
    "default": ('{"name": ', ', "arguments": ', "}"),
    "chatml": ('<tool_call>{"name": ', ', "arguments": ', "}</tool_call>"),
    "llama3": ('{"name": ', ', "parameters": ', "}"),
}


def json_grammar(schema: Mapping[str, Any], layout: Layout | None) -> str:
    """The grammar of a message that is JSON of a schema, closed with a line end where the layout is the default one.

    Raises ConfigError for what is no schema.
    """
    if not isinstance(schema, Mapping):
        raise ConfigError(f"a JSON schema is an object, not a {type(schema).__name__}")
    checked = _each(schema, _prepared)
    end = r' "\n"' if layout is not None and layout.name == "default" else ""
    return _grammar(f"start: @value{end}", {"value": checked})


def literals_of(grammar: str) -> list[str]:
    """What the patterns of a grammar's schemas spell out, such as ".pdf" in "^.*\\.pdf$"."""
    patterns = [json.loads(pattern) for pattern in _PATTERN.findall(grammar)]
    found = [literal for pattern in patterns for literal in _LITERAL.findall(pattern)]
    return list(dict.fromkeys(re.sub(r"\\(.)", r"\1", literal) for literal in found))[:MOST_LITERALS]


def functions_of(tools: Sequence[Mapping[str, Any]], choice: str) -> dict[str, Any]:
    """The parameters of the functions that may be called, by name, as schemas of objects.

    Python's names of types are taken for JSON schema's ("dict", "float", "tuple", …; "any" is no restriction). A
    function without parameters takes any object; one that describes properties takes no others, unless it says so.
    Raises ConfigError for a definition that is none, two of one name, and a choice that is not defined.
    """
    functions: dict[str, Any] = {}
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
            raise ConfigError(
                'a tool is defined as {"type": "function", "function": {"name": …, "parameters": {…}}}'
            )
        if name in functions:
            raise ConfigError(f"the tool {name!r} is defined twice. Give each its own name")
        functions[name] = _parameters(name, function.get("parameters"))
    if not functions:
        raise ConfigError("there are no tools to call. Define one, or ask for no calls")
    if choice in ("auto", "required"):
        return functions
    if choice not in functions:
        raise ConfigError(
            f"tool_choice names {choice!r}, which is not defined. Choose one of {', '.join(functions)}"
        )
    return {choice: functions[choice]}


def call_grammar(
    layout: str, functions: Mapping[str, Any], marker: int | None, *, free: bool, parallel: bool
) -> str:
    """The grammar of a message that calls functions, in a layout's own form.

    `marker`: the id of the special token that begins a call of the default layout. `free`: text may stand before the
    calls, or instead of them.
    """
    before, between, after = _CALLS[layout]
    heads = [before + json.dumps(name, ensure_ascii=False) + between for name in functions]
    begin = f"<[{marker}]> " if layout == "default" else ""
    more = f' ("\\n" call){{0,{MOST_CALLS - 1}}}' if parallel else ""
    end = ' "\\n"' if layout == "default" else ""
    rules = [f"start: call{more}{end}"]
    rules.append("call: " + " | ".join(f"call{i}" for i in range(len(heads))))
    rules += [f"call{i}: {begin}{_text(head)} rest{i}" for i, head in enumerate(heads)]
    rules += [f"rest{i}: @arguments{i} {_text(after)}" for i in range(len(heads))]
    if free:
        first = "first" if layout != "default" else "BEFORE? call"
        rules[0] = f"start: TEXT? | {first}{more}{end}"
        rules += _free_text(layout, heads)
    return _grammar("\n".join(rules), {f"arguments{i}": one for i, one in enumerate(functions.values())})


def _free_text(layout: str, heads: Sequence[str]) -> list[str]:
    """What text may come before calls: all that is not read as a call itself, up to a line end.

    In the layouts whose calls begin with ordinary text, that beginning is one terminal with the text before it.
    """
    if layout == "default":
        return ["TEXT: /(?s:.+)/", r"BEFORE: /(?s:.*\n)/"]
    if layout == "chatml":
        plain = "~/(?s:.*)<tool_call>(?s:.*)/"
        rules = [f"TEXT: /(?s:.+)/ & {plain}", rf"BEFORE: /(?s:(.*\n)?)/ & {plain}"]
    else:  # a line that is an object with parameters is read as a call
        rules = [
            r'LINE: /[^\n]*/ & ~/[^\S\n]*\{[^\n]*"parameters"[^\n]*/',
            r'TEXT: (LINE "\n")* LINE',
            r'BEFORE: (LINE "\n")*',
        ]
    rules += [f"FIRST{i}: BEFORE {_text(head)}" for i, head in enumerate(heads)]
    return [*rules, "first: " + " | ".join(f"FIRST{i} rest{i}" for i in range(len(heads)))]


def _text(text: str) -> str:
    """A text as the grammar writes it."""
    return json.dumps(text, ensure_ascii=False)


def _grammar(rules: str, schemas: Mapping[str, Any]) -> str:
    """Rules and the schemas that they name as one text; raises ConfigError where a schema is not JSON."""
    parts: list[dict[str, Any]] = [{"name": "start", "lark_grammar": rules}]
    for name, schema in schemas.items():
        # Over what the schema itself may say: it could ask for endless white space, or to be followed in part only.
        parts.append({"name": name, "json_schema": {**schema, "x-guidance": _STYLE}})
    try:
        return json.dumps({"grammars": parts}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"a schema is not JSON ({error}). Mend it") from error


def _parameters(name: str, schema: Any) -> dict[str, Any]:
    """A function's parameters as the schema of an object."""
    if schema is None:
        schema = {}
    if not isinstance(schema, Mapping):
        raise ConfigError(
            f"the parameters of the tool {name!r} are no JSON schema but a {type(schema).__name__}"
        )
    parameters: dict[str, Any] = _each(schema, lambda one: _prepared(_standard_type(one)))
    if parameters.setdefault("type", "object") != "object":
        raise ConfigError(
            f"the parameters of the tool {name!r} are of the type {parameters['type']!r}. Describe an object: "
            '{"type": "object", "properties": {…}}'
        )
    if parameters.get("properties") and not any(key in parameters for key in _OPEN):
        parameters["additionalProperties"] = False
    return parameters


def _standard_type(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with JSON schema's name for its type."""
    kind = schema.get("type")
    if isinstance(kind, str) and kind.lower() == "any":
        return {key: value for key, value in schema.items() if key != "type"}
    return {**schema, "type": _TYPES.get(kind, kind)} if isinstance(kind, str) else schema


def _prepared(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema as llguidance reads it; refuses what it would not hold a text to."""
    least, named = schema.get("minProperties", 0), schema.get("required", ())
    if isinstance(least, int) and least > max(1, len(named) if isinstance(named, Sequence) else 0):
        # It does not see that a model gives one name twice.
        raise ConfigError(
            f"a schema asks for at least {least} properties (minProperties) whatever their names, which cannot be "
            "assured. Name them in `required`"
        )
    reference = schema.get("$ref")
    if isinstance(reference, str):  # a URI is ASCII, names of definitions often are not
        return {**schema, "$ref": quote(reference, safe=string.punctuation, errors="replace")}
    return schema


def _each(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]], depth: int = 0) -> Any:
    """A schema with each schema in it changed; what is no object stays for the compiler to judge."""
    if not isinstance(schema, Mapping):
        return schema
    if depth > MOST_NESTED:
        raise ConfigError(
            f"a schema is nested more than {MOST_NESTED} deep. Make it flatter, with $defs and $ref"
        )
    result = {str(key): value for key, value in schema.items()}
    for key in result.keys() & set(_ONE):
        result[key] = _each(result[key], change, depth + 1)
    for key in result.keys() & set(_LIST):
        if isinstance(result[key], Sequence) and not isinstance(result[key], str):
            result[key] = [_each(one, change, depth + 1) for one in result[key]]
    for key in result.keys() & set(_NAMED):
        if isinstance(result[key], Mapping):
            result[key] = {name: _each(one, change, depth + 1) for name, one in result[key].items()}
    return change(result)
