"""Render rows of JSON by prompt formats, as in text-generation-webui.

A format is a JSON object: each key names the fields of a row, separated by commas, and its value is the template for
rows that have these fields and no others, with %field% where each stands:

    {"instruction,output": "### Instruction:\\n%instruction%\\n\\n### Response:\\n%output%"}

The last field of a template is the response, which is trained on; the text before it is the prompt.

Shapes: T tokens of a row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from mm_rec.data.conversations.issues import Issue, IssueError, did_you_mean, format_issues
from mm_rec.data.conversations.rendering import TokenizedExample, encode_texts
from mm_rec.data.conversations.row_formats import METADATA
from mm_rec.errors import ConfigError, DataError
from mm_rec.sources.documents import MAX_DOCUMENT_BYTES, find_files
from mm_rec.sources.formats import read_rows
from mm_rec.sources.locations import ROW_KINDS, SourceFile
from mm_rec.sources.problems import Problem, ProblemError
from mm_rec.strict_parsing import parse_json
from mm_rec.tokenizers.loading import bos_ids, special_token_pattern

LossOn = Literal["response", "all"]

_PLACEHOLDER = re.compile(r"%(\w+)%")
_ENCODE_BATCH = 1024  # rows encoded at once

_INSTRUCTION = "### Instruction:\n%instruction%\n\n"
_INPUT = "### Input:\n%input%\n\n"
_RESPONSE = "### Response:\n%output%"
_TASK = "Below is an instruction that describes a task"
_REQUEST = "Write a response that appropriately completes the request.\n\n"

# "alpaca" to the letter as in Stanford Alpaca (Taori et al. 2023), which is text-generation-webui's alpaca-format.json.
BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "alpaca": {
        "instruction,output": f"{_TASK}. {_REQUEST}{_INSTRUCTION}{_RESPONSE}",
        "instruction,input,output": f"{_TASK}, paired with an input that provides further context. "
        f"{_REQUEST}{_INSTRUCTION}{_INPUT}{_RESPONSE}",
    },
    "instruction": {
        "instruction,output": f"{_INSTRUCTION}{_RESPONSE}",
        "instruction,input,output": f"{_INSTRUCTION}{_INPUT}{_RESPONSE}",
    },
}


@dataclass(frozen=True, slots=True)
class RowTemplate:
    """The text for rows of some fields; `prompt` and `response` are its parts before and from the last place on."""

    fields: frozenset[str]
    prompt: str
    response: str

    @property
    def answer(self) -> str:
        """The field that is the response."""
        return str(_PLACEHOLDER.findall(self.response)[0])


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """The templates of a format, by its name or path."""

    name: str
    templates: tuple[RowTemplate, ...]

    @property
    def fields(self) -> frozenset[str]:
        """The fields of all templates."""
        return frozenset().union(*(template.fields for template in self.templates))


@dataclass(frozen=True, slots=True)
class _FilledRow:
    """A rendered row, its file and line, and the character that its response begins with."""

    text: str
    location: str
    response: int


def load_prompt_format(name: str | Path) -> PromptFormat:
    """The built-in format of a name, or that of a JSON file; raises ConfigError for what is neither or is not sound."""
    if str(name) in BUILT_IN:
        return _parse_format(BUILT_IN[str(name)], str(name))
    try:
        values = parse_json(Path(name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = did_you_mean(str(name), list(BUILT_IN))
        raise ConfigError(
            f"there is no prompt format {str(name)!r}, nor a file of this name; {hint}"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{name}: this is no prompt format: {error}. It is a JSON object in UTF-8"
        ) from error
    if (
        not isinstance(values, dict)
        or not values
        or not all(isinstance(text, str) for text in values.values())
    ):
        raise ConfigError(
            f'{name}: a prompt format is a JSON object such as {{"instruction,output": "%instruction%\\n%output%"}}'
        )
    return _parse_format(values, str(name))


def render_rows(
    path: SourceFile | str,
    prompt_format: PromptFormat,
    tokenizer: PreTrainedTokenizerBase,
    *,
    train_on: LossOn = "response",
    max_length: int | None = None,
    add_bos: bool = True,
    add_eos: bool = True,
    left_out: list[Issue] | None = None,
) -> list[TokenizedExample]:
    """The rows of a file, folder, glob or URL of JSON, JSONL, CSV or Parquet as the model reads them.

    Learnt is the response with EOS, or all but BOS; BOS is added where the tokenizer itself puts it before a text, and
    neither is doubled. White space before a response is cut, and the space that ends a prompt is learnt, as part of the
    word after it. Raises DataError that lists every row that fits no template, is over `max_length` tokens, or cannot
    be learnt; with `left_out` they are put there instead.
    """
    issues: list[Issue] = [] if left_out is None else left_out
    texts = list(_fill_rows(path, prompt_format, special_token_pattern(tokenizer), issues))
    edges = (bos_ids(tokenizer) if add_bos else [], tokenizer.eos_token_id if add_eos else None)
    rendered = []
    for first in range(0, len(texts), _ENCODE_BATCH):
        group = texts[first : first + _ENCODE_BATCH]
        for text, encoding in zip(group, encode_texts(tokenizer, [one.text for one in group]), strict=True):
            try:
                rendered.append(_tokenize_row(text, encoding, train_on, edges, max_length))
            except IssueError as error:
                issues += error.issues
    if issues and left_out is None:
        raise DataError(
            f"there are {len(issues):,} problems in these rows.\n{format_issues(issues)}", str(path)
        )
    if not rendered:
        raise DataError("there is no row to train on. Give other files", str(path))
    return rendered


def render_prompt(prompt_format: PromptFormat, row: Mapping[str, Any]) -> str:
    """Render a row up to its response, for generation; the row may lack the response.

    Raises DataError where it fits no template.
    """
    names = _filled_fields(row, prompt_format)
    for lacking in (False, True):
        for template in prompt_format.templates:
            if template.fields - ({template.answer} if lacking else set()) == names:
                return _fill(template.prompt, row).rstrip(" ")
    raise _no_template(names, prompt_format, "")


def _parse_format(values: Mapping[str, str], name: str) -> PromptFormat:
    templates: dict[frozenset[str], RowTemplate] = {}
    for key, text in values.items():
        fields = frozenset(field.strip() for field in key.split(","))
        places = list(_PLACEHOLDER.finditer(text))
        used = {place[1] for place in places}
        if used != fields:
            wrong = ", ".join(f"%{field}%" for field in sorted(used ^ fields))
            raise ConfigError(
                f"{name}: the template of {key!r} must hold a place for each of its fields and for no other: {wrong}"
            )
        if fields in templates:
            raise ConfigError(f"{name}: two templates are for the fields {key!r}. Keep one of them")
        last = places[-1].start()
        templates[fields] = RowTemplate(fields, text[:last], text[last:])
    return PromptFormat(name, tuple(templates.values()))


def _fill_rows(
    path: SourceFile | str, prompt_format: PromptFormat, specials: re.Pattern[str], issues: list[Issue]
) -> Iterator[_FilledRow]:
    """Render the rows of all files; rows that do not fit are added to the issues."""

    def report(problem: Problem) -> None:
        issues.append(Issue(problem.reason, problem.location, problem.message))

    for file in find_files([path], kinds=ROW_KINDS):
        try:
            for line, row in read_rows(file, MAX_DOCUMENT_BYTES, report):
                try:
                    yield _fill_row(row, prompt_format, specials, f"{file}:{line}")
                except IssueError as error:
                    issues += error.issues
        except ProblemError as error:
            report(error.problem)


def _fill_row(
    row: Mapping[str, Any], prompt_format: PromptFormat, specials: re.Pattern[str], location: str
) -> _FilledRow:
    """Render a row; raises IssueError where no template is for it or a field cannot stand in a text."""
    names = _filled_fields(row, prompt_format)
    template = next((one for one in prompt_format.templates if one.fields == names), None)
    if template is None:
        raise _no_template(names, prompt_format, location)
    _require_plain({name: row[name] for name in sorted(names)}, specials, location)
    prompt = _fill(template.prompt, row)
    response = _fill(template.response, {**row, template.answer: row[template.answer].lstrip()})
    return _FilledRow(prompt + response, location, len(prompt.rstrip(" ")))


def _filled_fields(row: Mapping[str, Any], prompt_format: PromptFormat) -> frozenset[str]:
    """The fields of a row that are not empty; metadata that no template asks for is passed over."""
    passed = frozenset(METADATA) - prompt_format.fields
    return frozenset(
        name
        for name, value in row.items()
        if name not in passed and (value.strip() if isinstance(value, str) else value not in (None, [], {}))
    )


def _no_template(names: Iterable[str], prompt_format: PromptFormat, location: str) -> IssueError:
    known = "; ".join(", ".join(sorted(template.fields)) for template in prompt_format.templates)
    message = (
        f"the fields of this row ({', '.join(sorted(names)) or 'none'}) are those of no template of the format "
        f"{prompt_format.name} ({known}). Mend the row, or write a template for it"
    )
    return IssueError([Issue("no-template", location, message)])


def _require_plain(values: Mapping[str, Any], specials: re.Pattern[str], location: str) -> None:
    """Raise IssueError unless all values are text that holds no special token."""
    for name, value in values.items():
        if not isinstance(value, str):
            shown = json.dumps(value, default=str)[:60]
            raise IssueError(
                [Issue("not-text", location, f"the field {name!r} is not text but {shown}. Write text")]
            )
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = value[error.start]
            message = f"the field {name!r} holds half of a surrogate pair ({half!a}), which is no character"
            raise IssueError([Issue("surrogate", location, message)]) from error
        if found := specials.search(value):
            message = (
                f"the field {name!r} holds {found[0]}, a special token of the tokenizer. Write it otherwise"
            )
            raise IssueError([Issue("special-in-field", location, message)])


def _fill(text: str, row: Mapping[str, Any]) -> str:
    """A template's text with the row's values; a value that looks like a place stays as it is."""
    return _PLACEHOLDER.sub(lambda place: str(row[place[1]]), text)


def _tokenize_row(
    text: _FilledRow,
    encoding: Encoding,
    train_on: LossOn,
    edges: tuple[list[int], int | None],
    max_length: int | None,
) -> TokenizedExample:
    """A row with its mask, BOS and EOS; raises IssueError where it is too long or its mask cannot be exact."""
    begin, eos = edges
    starts, ends = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
    first = 0 if train_on == "all" else text.response
    if ((starts < first) & (ends > first)).any():
        message = (
            "the tokenizer joins the end of the prompt with the response. End the prompt with a line end"
        )
        raise IssueError([Issue("joined", text.location, message)])
    ids, loss_mask = list(encoding.ids), (starts >= first).tolist()
    rest = len(begin) if ids[: len(begin)] == begin else 0
    ids, loss_mask = begin + ids[rest:], [False] * len(begin) + loss_mask[rest:]
    if eos is not None and ids[-1:] != [eos]:
        ids, loss_mask = [*ids, eos], [*loss_mask, True]
    if max_length is not None and len(ids) > max_length:
        message = (
            f"it has {len(ids):,} tokens, and {max_length:,} are the most. Shorten it, or raise the limit"
        )
        raise IssueError([Issue("row-too-long", text.location, message)])
    return TokenizedExample(text.text, np.array(ids, dtype=np.int32), np.array(loss_mask, dtype=bool))
