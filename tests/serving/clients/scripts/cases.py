"""What every client of Python is asked, and how it says what it got; no client's own libraries are needed."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

MODEL, BASE_URL = "mmrec", os.environ["OPENAI_BASE_URL"]
QUESTIONS = ("Hello!", "What does she see?", "Ne görüyor?")
SHORT, LONG = 24, 250  # tokens

called: list[dict[str, Any]] = []  # the arguments of the calls of a case so far


def usage(answer: Any) -> list[int]:
    """The tokens of the prompt, of the answer and of both, under the names of chat or of responses."""
    told = answer if isinstance(answer, dict) else answer.model_dump()
    names = (
        ("prompt_tokens", "completion_tokens")
        if "prompt_tokens" in told
        else ("input_tokens", "output_tokens")
    )
    return [told[name] for name in (*names, "total_tokens")]


def report(cases: dict[str, Callable[[], Any]]) -> None:
    """Write, as JSON, what each case that was asked for gave, or what it raised."""
    found = {}
    for name in sys.argv[1:]:
        called.clear()
        try:
            found[name] = {"value": json.loads(json.dumps(cases[name]()))}  # as it is now: `called` changes
        except Exception:  # noqa: BLE001  # the other cases shall be tried
            found[name] = {"error": traceback.format_exc()}
    json.dump(found, sys.stdout)
