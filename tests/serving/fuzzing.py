"""Requests that a fuzzer makes: bytes that are almost HTTP, and bodies that are almost those of a route."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import strategies as st

CHAT = {
    "model": "llama", "messages": [{"role": "system", "content": "Kısa."}, {"role": "user", "content": "Hi 😀"}],
    "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.01, "seed": 1, "n": 2,
    "stop": ["x", "yz"], "logprobs": True, "top_logprobs": 2, "logit_bias": {"5": -1.5}, "presence_penalty": 0.1,
    "repetition_penalty": 1.1, "truncation": "auto", "user": "a", "metadata": {"a": "b"}, "stream": False,
}  # fmt: skip
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["city"],
    "properties": {
        "city": {"enum": ["Muş", "Van"]}, "name": {"type": "string", "pattern": "^[a-z]{1,4}$", "maxLength": 4},
        "day": {"type": "integer", "minimum": 1, "maximum": 9}, "list": {"type": "array",
        "items": {"$ref": "#/$defs/a"}},
    },
    "$defs": {"a": {"anyOf": [{"type": "null"}, {"type": "string", "format": "date"}]}},
}  # fmt: skip
TOOL = {"name": "weather", "description": "The weather.", "parameters": SCHEMA, "strict": True}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Van"}'}}
TOOL_ROUND = [
    {"role": "user", "content": [{"type": "text", "text": "Muş?"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "3 °C"},
]
ITEMS = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
    {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "call_1", "output": "3 °C"},
]
# Right bodies of every route that takes one.
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}}),
    ("/v1/chat/completions", {
        "model": "mmrec", "messages": TOOL_ROUND, "max_tokens": 4, "tool_choice": "auto",
        "tools": [{"type": "function", "function": TOOL}], "parallel_tool_calls": False,
    }),
    ("/v1/chat/completions", {
        "messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 8,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}},
    }),
    ("/v1/completions", {
        "model": "mmrec", "prompt": ["Once", [5, 6]], "max_tokens": 2, "echo": True, "logprobs": 1, "stop": "x",
        "n": 1, "best_of": 1, "frequency_penalty": 0.5, "stream": False,
    }),
    ("/v1/responses", {
        "model": "llama", "input": ITEMS, "instructions": "Brief.", "max_output_tokens": 3, "store": True,
        "tools": [{"type": "function", **TOOL}], "tool_choice": {"type": "function", "name": "weather"},
        "metadata": {"a": "b"}, "include": ["message.output_text.logprobs"], "top_logprobs": 1,
    }),
    ("/v1/responses", {
        "model": "mmrec", "input": "Hi", "max_output_tokens": 3, "stream": True, "previous_response_id": None,
        "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}, "truncation": "disabled",
    }),
    ("/v1/embeddings", {"model": "mmrec", "input": ["a", "b"], "encoding_format": "float", "dimensions": None}),
    ("/v1/sessions", {"model": "llama", "messages": CHAT["messages"],
    "tools": [{"type": "function", "function": TOOL}]}),
    ("/tokenize", {"model": "llama", "prompt": "ağaç", "add_special_tokens": True}),
    ("/tokenize", {"model": "mmrec", "messages": TOOL_ROUND}),
    ("/detokenize", {"model": "llama", "tokens": [5, 6, 7]}),
]  # fmt: skip

# What a field is given in place of what it has.
TEXTS = st.sampled_from(
    [
        "",
        "\0",
        "\ud83d",
        "😀",
        "<|assistant|>",
        "../../etc/passwd",
        "ı" * 300,
        "call_1",
        "llama",
        "json_object",
        "^(a+)+$",
    ]
) | st.text(max_size=8)
NUMBERS = st.sampled_from(
    [-1, 0, 2**31, 2**63, -(2**63) - 1, 10**4_000, 0.1, -0.0, 1e308, 5e-324, float("nan"), float("-inf")]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | NUMBERS | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXTS, below, max_size=3),
    max_leaves=6,
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """A path, and a right body for it in which up to four things were changed."""
    path, body = draw(st.sampled_from(BODIES))
    changed = json.loads(json.dumps(body))
    for _ in range(draw(st.integers(1, 4))):
        _change(draw, changed)
    return path, json.dumps(changed, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


def _change(draw: st.DrawFn, body: dict[str, Any]) -> None:
    """Change one value of a body, however deep: another one, one of another place, none, two, or deeper."""
    places = list(_places(body))
    if not places:
        return
    container, key = draw(st.sampled_from(places))
    other, other_key = draw(st.sampled_from(places))
    match draw(st.sampled_from(["value", "value", "move", "delete", "twice", "wrap", "nest", "rename"])):
        case "value":
            container[key] = draw(VALUES)
        case "move":
            container[key] = json.loads(json.dumps(other[other_key]))
        case "delete":
            del container[key]
        case "twice":
            container[key] = [container[key]] * draw(st.sampled_from([2, 17, 200]))
        case "wrap":
            container[key] = draw(st.sampled_from([[container[key]], {"type": container[key]}]))
        case "nest":
            for _ in range(draw(st.sampled_from([10, 300]))):
                container[key] = [container[key]]
        case "rename" if isinstance(container, dict):
            container[draw(TEXTS)] = container.pop(key)


def _places(value: Any) -> Any:
    """All containers of a body with the keys and indices of what is in them."""
    for key in list(
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    ):
        yield value, key
        yield from _places(value[key])


METHODS = st.sampled_from([
    b"GET", b"POST", b"HEAD", b"DELETE", b"OPTIONS", b"PUT", b"CONNECT", b"TRACE", b"PRI", b"get",
    b"G" * 9_000, b"G\0T", b"",
])  # fmt: skip
TARGETS = st.sampled_from([
    b"/health", b"/v1/models", b"/v1/chat/completions", b"/tokenize", b"/", b"*", b"", b"http://evil.example/health",
    b"/v1/models/%00", b"/v1/models/..%2f..%2fetc%2fpasswd", b"/v1/sessions/%ed%a0%80",
    b"/v1/sessions?limit=" + b"9" * 5_000,
    b"/v1/sessions?after=%00&after=x", b"/v1/responses/%F0%9F", b"//health", b"/health#a",
    b"/health?a=b", b"/" + b"a" * 9_000,
    b"localhost:80", b"/%", b"/\xff", b"/v1/sessions/x/fork", b"/openapi.json",
])  # fmt: skip
VERSIONS = st.sampled_from(
    [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.11", b"http/1.1", b"", b"HTTP/1.1 x"]
)
HEADERS = st.sampled_from([
    b"Host: localhost", b"Host: evil.example", b"Host: localhost:1", b"Host:", b"Host : localhost",
    b"Connection: close",
    b"Connection: keep-alive, Upgrade", b"Upgrade: websocket", b"Upgrade: h2c", b"Connection: upgrade, HTTP2-Settings",
    b"Expect: 100-continue", b"Expect: 200-ok", b"Content-Type: application/json", b"Content-Type: text/plain",
    b"Content-Type: application/json; charset=\"", b"Content-Type: multipart/form-data", b"Content-Encoding: gzip",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: identity",
    b"Transfer-Encoding:\x0bchunked", b"Content-Length: 0", b"Content-Length: -1",
    b"Content-Length: +5", b"Content-Length: 5, 5",
    b"Content-Length: 5", b"Content-Length: 99999999999999999999", b"Content-Length: 0x5", b"Content-Length: \xb2",
    b"X: a\r\n b", b"X: a\0b", b"X: \xff\xfe", b"X" * 5_000 + b": y", b"X: " + b"y" * 70_000, b": y", b"X", b" X: y",
    b"Authorization: Bearer \xff", b"Range: bytes=0-1", b"Trailer: X", b"TE: trailers", b"Cookie: a=b", b"Origin: null",
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", b"Sec-WebSocket-Version: 13", b"Accept: */*",
])  # fmt: skip
JSON = json.dumps(
    {"model": "llama", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
).encode()
STREAM = JSON[:-1] + b', "stream": true}'
SIZES = st.sampled_from(
    [b"0", b"-1", b"+3", b"3;a=b", b"3;" + b"a" * 70_000, b"ffffffffffffffffffff", b"", b"x", b" 3", b"03"]
)
NOISE = st.sampled_from(
    [
        b"\0",
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b":",
        b"\xff",
        b"0\r\n\r\n",
        b"\r\n\r\n",
        b"\x16\x03\x01",
        b"G" * 70_000,
    ]
) | st.binary(max_size=4)


def seldom(draw: st.DrawFn, odd: st.SearchStrategy[bytes], usual: bytes) -> bytes:
    """What is usual, and one time in eight what is odd: a request with several faults is refused for the first."""
    return draw(odd) if draw(st.integers(0, 7)) == 7 else usual


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request, right or almost."""
    body = draw(st.sampled_from([b"", JSON, STREAM]))
    usual = (
        b"/v1/chat/completions" if body else draw(st.sampled_from([b"/health", b"/v1/models", b"/nothing"]))
    )
    method = seldom(draw, METHODS, b"POST" if body else b"GET")
    line = b" ".join([method, seldom(draw, TARGETS, usual), seldom(draw, VERSIONS, b"HTTP/1.1")])
    head = [
        b"Host: localhost",
        *draw(st.sampled_from([[], [], [b"Expect: 100-continue"], [b"Connection: close"]])),
    ]
    head += [one for one in [seldom(draw, HEADERS, b""), seldom(draw, HEADERS, b"")] if one]
    if body:
        framing, body = draw(framed(body))
        head += [b"Content-Type: application/json", *framing]
    end = seldom(draw, st.sampled_from([b"\n", b"\r", b"\r\n\r\n"]), b"\r\n")
    return end.join([line, *draw(st.permutations(head)), b"", b""]) + body


@st.composite
def framed(draw: st.DrawFn, body: bytes) -> tuple[list[bytes], bytes]:
    """The headers that say how long a body is, and the body so: with its length, in chunks, both, or neither."""
    body = seldom(draw, st.sampled_from([body[:-9], b"{}", b"\0", b"[" * 1_000]), body)
    length = b"Content-Length: %d" % (len(body) + draw(st.sampled_from([0] * 8 + [-3, 3, 10**9])))
    chunked = b"Transfer-Encoding: chunked"
    match draw(
        st.sampled_from(["length", "length", "length", "chunks", "chunks", "chunks", "both", "neither"])
    ):
        case "length":
            return [length], body
        case "chunks":
            return [chunked], draw(chunks(body))
        case "both":
            return [length, chunked], draw(chunks(body))
        case _:
            return [], body


@st.composite
def chunks(draw: st.DrawFn, body: bytes) -> bytes:
    """A body in chunks, whose sizes and ends are right or almost."""
    step = draw(st.sampled_from([1, 7, 100]))
    parts = [body[at : at + step] for at in range(0, len(body), step)]
    written = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts]
    at = draw(st.integers(0, len(parts) - 1))
    size, end = seldom(draw, SIZES, b"%x" % len(parts[at])), seldom(draw, NOISE, b"\r\n")
    written[at] = b"%s\r\n%s%s" % (size, parts[at], end)
    last = st.sampled_from([b"0\r\nX: y\r\n\r\n", b"0\r\n", b"0\r\n: \0\r\n\r\n", b""])
    return b"".join(written) + seldom(draw, last, b"0\r\n\r\n")


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """The pieces in which up to three requests are sent on one connection, some of their bytes changed."""
    sent = bytearray(b"".join(draw(st.lists(requests(), min_size=1, max_size=3))))
    for _ in range(draw(st.sampled_from([0] * 5 + [1, 2, 4]))):
        start = draw(st.integers(0, len(sent)))
        kept = bytes(sent[start : start + draw(st.sampled_from([0, 1, 2, 20]))])
        sent[start : start + len(kept)] = draw(st.sampled_from([b"", kept * 2, kept[::-1]]) | NOISE)
    if draw(st.integers(0, 5)) == 5:
        del sent[draw(st.integers(0, len(sent))) :]
    ends = [0, *sorted(draw(st.lists(st.integers(0, len(sent)), max_size=4))), len(sent)]
    return [bytes(sent[a:b]) for a, b in itertools.pairwise(ends)]
