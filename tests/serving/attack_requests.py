"""What an attacker sends: requests that took memory or time from everybody, for tests and for bench/attacks.py.

Each attack is sent once, by `Attack.send`, to the server of a `Target`; it gives back what the server answered.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

GONE = "no answer"  # in place of a status: the connection was closed, or nothing came in time
CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"


@dataclass(frozen=True)
class Target:
    """The server that is attacked: its address, a model, the file of its store; `seconds`: how long to wait for it."""

    host: str
    port: int
    model: str
    store: Path
    seconds: float = 20.0


@dataclass(frozen=True)
class Attack:
    """`send` gives the statuses that came, or GONE; `aim`: the part of the server that it is meant for."""

    name: str
    aim: str
    send: Callable[[Target], list[int | str]]


def post(target: Target, path: str, body: bytes) -> int | str:
    """The status of a request, or GONE."""
    connection = HTTPConnection(target.host, target.port, timeout=target.seconds)
    with contextlib.closing(connection):
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
        except (OSError, HTTPException):
            return GONE
        return response.status


def post_all(target: Target, path: str, bodies: Sequence[bytes]) -> list[int | str]:
    """The statuses of requests made at once."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: post(target, path, body), bodies))


def chat(target: Target, **fields: Any) -> bytes:
    """The body of a short chat."""
    messages = [{"role": "user", "content": "Hello!"}]
    return json.dumps({"model": target.model, "messages": messages, "max_tokens": 3, **fields}).encode()


def held_to(target: Target, pattern: str) -> bytes:
    """The body of a chat whose answer is held to a pattern."""
    schema = {
        "type": "object", "properties": {"x": {"type": "string", "pattern": pattern}}, "required": ["x"],
        "additionalProperties": False,
    }  # fmt: skip
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return chat(target, response_format=wanted)


def literal(length: int) -> str:
    """A pattern of one long literal."""
    source = random.Random(0)
    return "^" + "".join(source.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(length)) + "$"


def character_class(length: int) -> str:
    """A pattern of classes of many characters, of which no two are neighbours."""
    letters = "".join(chr(0x4E00 + 2 * place) for place in range(length))
    return f"^[{letters}]+[^{letters}]+$"


def patterns(pattern: str, times: int = 1) -> Callable[[Target], list[int | str]]:
    """Chats held to a pattern, at once."""
    return lambda target: post_all(target, CHAT, [held_to(target, pattern)] * times)


@contextlib.contextmanager
def connections(target: Target, count: int) -> Iterator[list[socket.socket]]:
    """Open connections."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            with contextlib.suppress(OSError):
                opened = socket.create_connection((target.host, target.port), timeout=1)
                found.append(stack.enter_context(contextlib.closing(opened)))
        yield found


def answer_of(connection: socket.socket) -> int | str:
    """The status that lies ready on a connection, or GONE."""
    connection.setblocking(False)
    try:
        first = connection.recv(64).split()
    except OSError:
        return GONE
    return int(first[1]) if len(first) > 1 and first[1].isdigit() else GONE


def silent(target: Target) -> list[int | str]:
    """Three hundred connections on which nothing is sent."""
    with connections(target, 300) as found:
        time.sleep(min(5.0, target.seconds))
        return [answer_of(one) for one in found]


def dripping(target: Target) -> list[int | str]:
    """Headers that come a byte at a time, on fifty connections."""
    head = f"GET /health HTTP/1.1\r\nHost: {target.host}\r\nX-Slow: {'a' * 1000}".encode()
    with connections(target, 50) as found:
        end = time.monotonic() + min(5.0, target.seconds)
        for byte in head:
            for one in found:
                with contextlib.suppress(OSError):
                    one.sendall(bytes([byte]))
            time.sleep(0.02)
            if time.monotonic() > end:
                break
        return [answer_of(one) for one in found]


def invalid_items(target: Target) -> list[int | str]:
    """Eight megabytes of messages that are none."""
    items = b"0," * (4 * 2**20 - 200)
    return [post(target, CHAT, b'{"model":"%s","messages":[%s0]}' % (target.model.encode(), items))]


def many_tools(target: Target) -> list[int | str]:
    """A thousand tools."""
    parameters = {
        "type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(4)},
        "required": [f"p{number}" for number in range(4)], "additionalProperties": False,
    }  # fmt: skip
    functions = [{"name": f"f{number}", "parameters": parameters} for number in range(1000)]
    tools = [{"type": "function", "function": function} for function in functions]
    return [post(target, CHAT, chat(target, tools=tools, tool_choice="required"))]


def large_metadata(target: Target) -> list[int | str]:
    """Twenty responses to be kept, with eight megabytes of metadata each."""
    body = {
        "model": target.model,
        "input": "Hello!",
        "max_output_tokens": 1,
        "metadata": {"x": "x" * (2**23 - 500)},
    }
    return [post(target, RESPONSES, json.dumps(body).encode()) for _ in range(20)]


def long_embedding(target: Target) -> list[int | str]:
    """An embedding of 77,824 tokens."""
    body = {"model": target.model, "input": [300] * 77_824}
    return [post(target, EMBEDDINGS, json.dumps(body).encode())]


def nested_arguments(target: Target) -> list[int | str]:
    """A call of a function in the history, whose arguments are nested 600 deep."""
    arguments = '{"a":' * 600 + "1" + "}" * 600
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    return [post(target, CHAT, chat(target, messages=messages, tools=tools))]


def brackets(target: Target) -> list[int | str]:
    """A hundred thousand brackets."""
    return [post(target, CHAT, b"[" * 100_000)]


def locked_store(target: Target) -> list[int | str]:
    """Nine responses that wait for the store, which another process has locked."""
    body = {"model": target.model, "input": "Hello!", "max_output_tokens": 1}
    locked, done = threading.Event(), threading.Event()

    def lock() -> None:
        with contextlib.closing(sqlite3.connect(target.store, timeout=5)) as store:
            store.execute("BEGIN EXCLUSIVE")
            locked.set()
            done.wait(2 * target.seconds)  # longer than anybody waits for an answer
            store.rollback()

    holder = threading.Thread(target=lock)
    holder.start()
    try:
        locked.wait(10)
        return post_all(target, RESPONSES, [json.dumps(body).encode()] * 9)
    finally:
        done.set()
        holder.join()


ATTACKS = (
    Attack("a pattern of 30 KB", "grammar", patterns(literal(30_000))),
    Attack("a pattern of 80 KB", "grammar", patterns(literal(80_000))),
    Attack("character classes of 10,000", "grammar", patterns(character_class(10_000))),
    Attack("three of ^.{3000}$", "grammar", patterns("^.{3000}$", 3)),
    Attack("^(a{1000}){1000}$", "grammar", patterns("^(a{1000}){1000}$")),
    Attack("300 silent connections", "connections", silent),
    Attack("headers byte by byte", "connections", dripping),
    Attack("8 MB of invalid items", "bodies", invalid_items),
    Attack("1,000 tools", "grammar", many_tools),
    Attack("20 times 8 MB of metadata", "store", large_metadata),
    Attack("an embedding of 77,824 tokens", "limits", long_embedding),
    Attack("arguments nested 600 deep", "templates", nested_arguments),
    Attack("100,000 brackets", "bodies", brackets),
    Attack("nine responses, a locked store", "store", locked_store),
)
