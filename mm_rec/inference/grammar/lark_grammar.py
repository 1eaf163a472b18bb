"""The grammars that text can be held to, as llguidance reads them: JSON of a schema, and calls of tools.

JSON is written on one line, as `json.dumps` writes it: that is how the chat templates write calls, and white space has
no end when a model may choose it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mm_rec.errors import ConfigError
from mm_rec.inference.grammar.checked_schema import checked_schema, map_schemas
from mm_rec.tokenizers.assistant_format import AssistantFormat
from mm_rec.tokenizers.tool_call_format import CALL_ID_PATTERN, ID_PLACEHOLDER, ToolCallFormat

MAX_TOOL_CALLS = 16  # in one message

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
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}  # those of a function that takes none
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

_JSON_SYMBOL = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]|[:,] ?|[^"{}\[\]:,]+')
_STYLE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}


class TemplateGrammar:
    """The parts of a grammar that follow a chat template: its form, and the ids of its special tokens.

    `form` is None for a tokenizer without a template. `in_reasoning`: the prompt has begun reasoning already.
    """

    def __init__(
        self,
        form: AssistantFormat | None,
        special: re.Pattern[str],
        ids: Mapping[str, int],
        in_reasoning: bool = False,
    ) -> None:
        self.form, self.in_reasoning = form, in_reasoning
        self._special, self._ids = special, ids

    def symbols(self, text: str) -> list[str]:
        """A text as symbols of a grammar: literals, special tokens, and the pattern of a call's id."""
        found: list[str] = []
        place = 0
        for special in self._special.finditer(text):
            found += [*_plain_symbols(text[place : special.start()]), f"<[{self._ids[special[0]]}]>"]
            place = special.end()
        return found + _plain_symbols(text[place:])

    @property
    def reasoning_rules(self) -> list[str]:
        """The rules of the symbol `thinking`, which stands before an answer; none where the model does not reason."""
        if self.form is None or self.form.reasoning is None:
            return []
        begin, end = (
            self.symbols(text.strip()) for text in (self.form.reasoning.begin, self.form.reasoning.end)
        )
        if end[0].startswith('"'):  # one terminal, which ends where the mark does
            mark = _escaped(self.form.reasoning.end.strip())
            thought, block = rf"THOUGHT: /(?s:.*){mark}/ & ~/(?s:.*){mark}(?s:.+)/", ["THOUGHT"]
        else:
            thought, block = "THOUGHT: /(?s:.+)/", ["THOUGHT?", *end]
        within = " ".join([*block, r"/\s{0,2}/"])
        return [
            f"thinking: {within}" if self.in_reasoning else f"thinking: ({' '.join(begin)} {within})?",
            thought,
        ]

    def start_rule(self, body: str) -> str:
        """The rule of a grammar's start."""
        return f"start: thinking ({body})" if self.reasoning_rules else f"start: {body}"


def _plain_symbols(text: str) -> list[str]:
    """Text without special tokens as symbols."""
    found: list[str] = []
    for number, piece in enumerate(text.split(ID_PLACEHOLDER)):
        found += [f"/{CALL_ID_PATTERN}/"] * (number > 0) + [_quoted(piece)] * bool(piece)
    return found


def _escaped(text: str) -> str:
    """A text as a pattern between slashes."""
    return re.sub(r"[\\.+*?()|\[\]{}^$/]", lambda sign: "\\" + sign[0], text).replace("\n", "\\n")


def json_grammar(schema: Mapping[str, Any], template: TemplateGrammar) -> str:
    """The grammar of a message that is JSON of a schema, after reasoning where the model reasons, and ended as the
    template ends what the assistant says. Raises ConfigError for what is no schema.
    """
    rules = [template.start_rule(_answer_rule(template)), *template.reasoning_rules]
    return _grammar("\n".join(rules), {"value": _answer_schema(schema)})


def _answer_rule(template: TemplateGrammar) -> str:
    """Return the symbols of a message that is JSON."""
    end = template.symbols(template.form.end) if template.form is not None else []
    return " ".join(["@value", *end])


def _answer_schema(schema: Mapping[str, Any]) -> Any:
    if not isinstance(schema, Mapping):
        raise ConfigError(f"a JSON schema is an object, not a {type(schema).__name__}")
    return map_schemas(schema, checked_schema)


def callable_functions(tools: Sequence[Mapping[str, Any]], choice: str) -> dict[str, Any]:
    """The parameters of the functions that may be called, by name, as schemas of objects.

    Python's names of types are taken for JSON schema's ("dict", "float", "tuple", …; "any" is no restriction). A
    function without parameters takes none; one that describes properties takes no others, unless it says so.
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
    functions: Mapping[str, Any],
    template: TemplateGrammar,
    *,
    free: bool,
    parallel: bool,
    answer_schema: Mapping[str, Any] | None = None,
) -> str:
    """The grammar of a message that calls functions, in the form that the model's template writes.

    `free`: text may stand instead of the calls, and before them where the template has text beside calls. With an
    `answer_schema` it is JSON of that schema that may stand instead of them, and nothing before them. Raises
    ConfigError where the template has no calls.
    """
    assert template.form is not None
    form = template.form.require_calls()
    schemas: dict[str, Any] = {}
    heads = [form.written_name(name) + form.between for name in functions]
    rules = ["call: " + " | ".join(f"call{i}" for i in range(len(heads)))]
    rules += [
        " ".join([f"call{i}:", *template.symbols(head), f"arguments{i}"]) for i, head in enumerate(heads)
    ]
    for i, (name, parameters) in enumerate(functions.items()):
        if form.pythonic:
            rules += _keyword_rules(i, name, parameters, schemas)
        else:
            rules.append(f"arguments{i}: @object{i}")
            schemas[f"object{i}"] = parameters
    call_separator = " ".join(template.symbols(form.call_separator or ""))
    more = (
        f"({call_separator} call){{0,{MAX_TOOL_CALLS - 1}}}"
        if parallel and form.call_separator is not None
        else ""
    )
    rules.append(" ".join(["rest:", more, *(template.symbols(form.closing) or ['""'])]))
    opening = template.symbols(form.opening)
    instead = ""
    if free and answer_schema is None:
        rules += _free_text_rules(form, opening, heads)
        instead = "TEXT? | "
    elif free and answer_schema is not None:
        rules += _first_call_rules(form, opening, heads)
        schemas["value"] = _answer_schema(answer_schema)
        instead = f"{_answer_rule(template)} | "
    else:
        rules.append(" ".join(["first:", *opening, "call"]))
    start = template.start_rule(f"{instead}first rest")
    return _grammar("\n".join([start, *rules, *template.reasoning_rules]), schemas)


def _free_text_rules(form: ToolCallFormat, opening: Sequence[str], heads: Sequence[str]) -> list[str]:
    """Return the rules for text before the first call or instead of it: any text that is not read as a call.

    Where calls begin with ordinary text, that is one terminal with the text before it, or it would be text as well.
    """
    after, whole = _escaped(form.after_text or ""), " ".join([*opening, "call"])
    if not opening[0].startswith('"'):  # a special token, which no text holds
        if form.call_position == "alone":
            return ["TEXT: /(?s:.+)/", f"first: {whole}"]
        return ["TEXT: /(?s:.+)/", f"BEFORE: /(?s:.*{after})/", f"first: BEFORE? {whole}"]
    if form.call_position == "alone":
        return [rf"TEXT: /(?s:.+)/ & ~/\s*{_escaped(json.loads(opening[0]))}(?s:.*)/", f"first: {whole}"]
    if form.call_position == "marked":
        plain = f"~/(?s:.*){_escaped(form.marker)}(?s:.*)/"
        rules = [f"TEXT: /(?s:.+)/ & {plain}", f"BEFORE: /(?s:(.*{after})?)/ & {plain}"]
        return [*rules, f"FIRST: BEFORE {opening[0]}", f"first: {' '.join(['FIRST', *opening[1:], 'call'])}"]
    # A line that is an object with the arguments' name is read as a call.
    rules = [
        rf'LINE: /[^\n]*/ & ~/[^\S\n]*\{{[^\n]*"{form.arguments_key}"[^\n]*/',
        r'TEXT: (LINE "\n")* LINE',
        r'BEFORE: (LINE "\n")*',
    ]
    rules += [f"FIRST{i}: BEFORE {_quoted(form.opening + head)}" for i, head in enumerate(heads)]
    return [*rules, "first: " + " | ".join(f"FIRST{i} arguments{i}" for i in range(len(heads)))]


def _first_call_rules(form: ToolCallFormat, opening: Sequence[str], heads: Sequence[str]) -> list[str]:
    """Return the rules of a first call beside which JSON may stand.

    Where the call is an object itself, it is written in the symbols that JSON is: the lexer takes the longest one, and
    a longer one would hide the answer's.
    """
    if not form.opening.startswith("{"):
        return [" ".join(["first:", *opening, "call"])]
    rules = ["first: " + " | ".join(f"first{i}" for i in range(len(heads)))]
    for i, head in enumerate(heads):
        symbols = map(_quoted, _JSON_SYMBOL.findall(form.opening + head))
        rules.append(" ".join([f"first{i}:", *symbols, f"arguments{i}"]))
    return rules


def _keyword_rules(i: int, name: str, parameters: Mapping[str, Any], schemas: dict[str, Any]) -> list[str]:
    """The rules of a function's arguments in Python's form, in the order of its properties; notes their schemas."""
    properties, required = parameters.get("properties") or {}, parameters.get("required") or []
    if (
        not isinstance(properties, Mapping)
        or not isinstance(required, list)
        or not set(map(str, required)) <= set(properties)
        or any(key in parameters for key in ("$ref", "anyOf", "oneOf", "allOf", "if", "not"))
    ):
        raise ConfigError(
            f"the tool {name!r} cannot be called in this model's form, name(key=value): describe its parameters by "
            "properties, and those that are required among them, and by nothing else"
        )
    shared = {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}
    keys = list(properties)
    for key in keys:
        if not key.isidentifier():
            raise ConfigError(
                f"the tool {name!r} has a parameter {key!r}, which is no keyword of a Python call. Rename it"
            )
    rules = [f"arguments{i}: after{i}_0_first"]
    for k, key in enumerate(keys):
        value = properties[key]
        schemas[f"value{i}_{k}"] = {**value, **shared} if isinstance(value, Mapping) else value
        for state, comma in (("first", ""), ("more", ", ")):
            given = f"{_quoted(f'{comma}{key}=')} @value{i}_{k} after{i}_{k + 1}_more"
            left_out = "" if key in required else f" | after{i}_{k + 1}_{state}"
            rules.append(f"after{i}_{k}_{state}: {given}{left_out}")
    return [*rules, *(f'after{i}_{len(keys)}_{state}: ""' for state in ("first", "more"))]


def _quoted(text: str) -> str:
    """A text as the grammar writes it."""
    return json.dumps(text, ensure_ascii=False)


def _grammar(rules: str, schemas: Mapping[str, Any]) -> str:
    """Rules and the schemas that they name as one text; raises ConfigError where a schema is not JSON."""
    parts: list[dict[str, Any]] = [{"name": "start", "lark_grammar": rules}]
    for name, schema in schemas.items():
        # Over what the schema itself may say: it could ask for endless white space, or to be followed in part only.
        styled = {**schema, "x-guidance": _STYLE} if isinstance(schema, Mapping) else schema
        parts.append({"name": name, "json_schema": styled})
    try:
        return json.dumps({"grammars": parts}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"a schema is not JSON ({error}). Mend it") from error


def _parameters(name: str, schema: Any) -> dict[str, Any]:
    """A function's parameters as the schema of an object."""
    if schema is None:
        schema = NO_PARAMETERS
    if not isinstance(schema, Mapping):
        raise ConfigError(
            f"the parameters of the tool {name!r} are no JSON schema but a {type(schema).__name__}"
        )
    try:
        parameters: dict[str, Any] = map_schemas(schema, lambda one: checked_schema(_with_standard_type(one)))
    except ConfigError as error:
        raise ConfigError(f"what the tool {name!r} takes cannot be followed: {error}") from error
    if parameters.setdefault("type", "object") != "object":
        raise ConfigError(
            f"the parameters of the tool {name!r} are of the type {parameters['type']!r}. Describe an object: "
            '{"type": "object", "properties": {…}}'
        )
    if "properties" in parameters and not any(key in parameters for key in _OPEN):
        parameters["additionalProperties"] = False
    return parameters


def _with_standard_type(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with JSON schema's name for its type."""
    kind = schema.get("type")
    if isinstance(kind, str) and kind.lower() == "any":
        return {key: value for key, value in schema.items() if key != "type"}
    return {**schema, "type": _TYPES.get(kind, kind)} if isinstance(kind, str) else schema
