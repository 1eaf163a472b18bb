"""Issues of conversations: one record each, and a list that shows each kind once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mm_rec.errors import DataError

_SHOWN = 3  # messages of a kind, and locations of a message, that are printed
_MAX_LOCATIONS = 50  # lines that are named at once

# What to do about each kind. Problems of reading (a damaged file …) say so themselves.
REMEDIES: Mapping[str, str] = {
    "unknown-format": "name the format with --format, or say which field is which with --map prompt=FIELD",
    "preference-data": "write the wanted answers as conversations; --fix leaves these rows out",
    "unknown-field": "correct its name, map it with --map, or delete it; --fix keeps a row's as metadata and drops a "
    "message's",
    "ambiguous-field": "keep one of them; --fix leaves the row out",
    "missing-field": "add it, or say which field it is with --map; --fix leaves the row out",
    "no-messages": "give the row messages; --fix leaves it out",
    "missing-role": "give the message a role; --fix leaves the conversation out",
    "unknown-role": "use system, developer, user, assistant or tool; --fix leaves the conversation out",
    "empty-answer": "write the answer; --fix cuts it with its question",
    "empty-message": "write the message; --fix cuts it with what belongs to it",
    "two-systems": "make one message of them; --fix joins them",
    "system-not-first": "put it first; --fix moves it there",
    "role-order": "let question and answer alternate, from a question to an answer; --fix joins messages of one "
    "role and cuts the ends",
    "call-without-definition": "add the function to the row's tools; --fix leaves the conversation out",
    "bad-arguments": "give the arguments that the definition asks for, as a JSON object; --fix leaves the "
    "conversation out",
    "result-without-call": "delete the result, or add its call; --fix leaves the conversation out",
    "call-without-result": "add a tool message for each call; --fix leaves the conversation out",
    "misplaced-call": "only an assistant calls tools and only a tool message answers a call; --fix leaves the "
    "conversation out",
    "bad-tool-definition": 'write it as {"type": "function", "function": {"name": …, "parameters": {…}}}; --fix '
    "calls the type 'dict' 'object' and leaves other conversations out",
    "special-token": "it would end or begin a message in the middle of one: write it otherwise; --fix takes it out",
    "bad-weight": "use 0 or 1, on answers; --fix takes it away",
    "bad-content": "write text; --fix leaves the conversation out",
    "reasoning": "write what is to be learnt as text; --fix drops the reasoning",
    "surrogate": "an emoji was probably cut in two: mend the text; --fix leaves the row out",
    "cannot-hold": "choose another --to; --fix leaves the conversation out",
    "not-json": "mend or delete the row; --fix leaves it out",
    "bad-row": "mend or delete the row; --fix leaves it out",
    "too-large": "split the row; --fix leaves it out",
    # Of the preflight, once a conversation is rendered.
    "refused": "the chat template cannot write it: mend it, or choose another layout with --template; --fix leaves it "
    "out",
    "too-long": "raise --max-length where the model allows it, cut the oldest turns with --too-long turns, or split "
    "it; --fix leaves it out",
    "nothing-learnt": "it has no answer that counts: give one a weight of 1, or leave it out; --fix leaves it out",
    "end-not-learnt": "a model trained on it would not know when to stop: choose a layout of ours with --template",
}


@dataclass(frozen=True, slots=True)
class Issue:
    """One problem: its kind (the keys of REMEDIES), the file and line of its row, and what is wrong there."""

    kind: str
    location: str
    message: str

    def __str__(self) -> str:
        return f"{self.location}: {self.message}" if self.location else self.message


class IssueError(DataError):
    """A row that cannot be used, with all its `issues`."""

    def __init__(self, issues: Sequence[Issue]) -> None:
        super().__init__("; ".join(map(str, issues)))
        self.issues = tuple(issues)

    def __reduce__(self) -> tuple[type[IssueError], tuple[tuple[Issue, ...]]]:
        return type(self), (self.issues,)


@dataclass(frozen=True, slots=True)
class Fix:
    """A repair of a row, made on request, or that it was left out."""

    location: str
    message: str


def format_issues(issues: Iterable[Issue]) -> str:
    """List each kind of issue once, the most frequent first: count, first messages and locations, remedy."""
    kinds: dict[str, list[Issue]] = {}
    for issue in issues:
        kinds.setdefault(issue.kind, []).append(issue)
    lines: list[str] = []
    for kind, found in sorted(kinds.items(), key=lambda item: -len(item[1])):
        lines.append(f"{kind}: {_times(len(found))}")
        messages: dict[str, list[str]] = {}
        for issue in found:
            messages.setdefault(issue.message, []).append(issue.location)
        shown = list(messages.items())[:_SHOWN]
        lines += [f"    {message} ({_format_locations(locations)})" for message, locations in shown]
        rest = [location for locations in list(messages.values())[_SHOWN:] for location in locations]
        if rest:
            lines.append(f"    … and {len(rest):,} more ({_format_locations(rest)})")
        if kind in REMEDIES:
            lines.append(f"  → {REMEDIES[kind]}")
    return "\n".join(lines)


def format_fixes(fixes: Iterable[Fix]) -> str:
    """List each kind of fix once, the most frequent first, with the first locations."""
    kinds: dict[str, list[str]] = {}
    for fix in fixes:
        kinds.setdefault(fix.message, []).append(fix.location)
    ordered = sorted(kinds.items(), key=lambda item: -len(item[1]))
    return "\n".join(
        f"{message}: {_times(len(locations))} ({_format_locations(locations)})"
        for message, locations in ordered
    )


def _format_locations(locations: Sequence[str]) -> str:
    """Join the first locations, with the file's name where it changes: a.jsonl:7, 12, 30 …"""
    shown: list[str] = []
    before = ""
    distinct = list(dict.fromkeys(locations))
    for location in distinct[:_MAX_LOCATIONS]:
        file, _, line = location.rpartition(":")
        shown.append(line if file and file == before else location)
        before = file
    return ", ".join(shown) + (" …" if len(distinct) > _MAX_LOCATIONS else "")


def did_you_mean(name: str, known: Sequence[str], others: Sequence[str] = ()) -> str:
    """A hint in words: the name that a wrong one was probably meant to be (also one of `others`), or all known ones."""
    close = difflib.get_close_matches(name, [*known, *others], n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
