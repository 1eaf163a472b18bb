"""The clients that are tried: the package of each, the script that asks through it, and the cases of that."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from serving.clients.environments import PINS

_CHAT = "chat stream tools structured combined embeddings turns"
_RESPONSES = (
    "chat_by_responses stream_by_responses tools_by_responses structured_by_responses combined_by_responses"
)
_OPENAI = f"{_CHAT} {_RESPONSES} stream_by_helper turns_by_responses turns_by_items"
_PYDANTIC = f"{_OPENAI} structured_by_create schema_of_records schema_of_sets schema_of_forms"


@dataclass(frozen=True)
class Client:
    """A client by the name of its package on PyPI, or on npm where its script is JavaScript."""

    package: str
    script: str
    case_names: str

    @property
    def cases(self) -> list[str]:
        """The names of its cases: what is asked for, and after that by which of the client's ways."""
        return self.case_names.split()

    @property
    def index(self) -> str:
        """The index that its package comes from."""
        return "PyPI" if self.script.endswith(".py") else "npm"


CLIENTS = {  # each by the name of its environment, those of JavaScript share one
    "openai-1-early": Client(
        "openai", "openai_client.py", "chat stream tools structured_by_create embeddings turns"
    ),
    "openai-1": Client("openai", "openai_client.py", _PYDANTIC),
    "openai-2": Client("openai", "openai_client.py", _PYDANTIC),
    "openai-3": Client("openai", "openai_client.py", _PYDANTIC),
    "instructor": Client(
        "instructor",
        "instructor_client.py",
        "chat structured structured_by_schema structured_by_responses structured_by_stream json_object",
    ),
    "langchain-openai": Client(
        "langchain-openai",
        "langchain_client.py",
        f"{_CHAT} {_RESPONSES} structured_by_tools turns_by_responses turns_by_items",
    ),
    "pydantic-ai": Client(
        "pydantic-ai-slim",
        "pydantic_ai_client.py",
        f"{_CHAT} {_RESPONSES} structured_by_schema structured_by_responses_and_schema combined_by_schema "
        "combined_by_responses_and_schema turns_by_items",
    ),
    "openai-agents": Client(
        "openai-agents",
        "agents_client.py",
        f"chat stream tools structured combined turns {_RESPONSES} turns_by_responses turns_by_items",
    ),
    "lm-eval": Client("lm-eval", "lm_eval_client.py", "chat likelihoods"),
    "openai-npm": Client("openai", "openai_client.mjs", f"{_OPENAI} schema_of_formats"),
    "ai": Client(
        "ai",
        "ai_client.mjs",
        f"{_CHAT} {_RESPONSES} turns_by_items schema_of_records schema_of_records_by_tools schema_of_sets",
    ),
}


def version(name: str) -> str:
    """The version of a client that is tried."""
    client = CLIENTS[name]
    if client.index == "npm":
        found: str = json.loads((PINS / "package.json").read_text("utf-8"))["dependencies"][client.package]
        return found
    pins = (PINS / f"{name}.txt").read_text("utf-8")
    [found] = re.findall(rf"^{client.package}(?:\[\w+\])?==(\S+)$", pins, flags=re.MULTILINE | re.IGNORECASE)
    return found
