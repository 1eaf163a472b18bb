"""Each route of the server and each call of OpenAI's client: that it works, or that the server says it has none."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal

import openai
import pydantic
import pytest
from serving.openai_requests import MESSAGES, TOOLS, Chat, Completions, Embeddings, Responses

Client = openai.OpenAI
Call = Callable[[Client], None]
HERE = (
    "chat.completions",
    "completions",
    "embeddings",
    "models",
    "responses",
)  # resources that are shown call by call
LISTED = r"docs/openai\.md lists"
METHODS = {"get", "post", "delete", "put", "patch"}


class Report(pydantic.BaseModel):
    """What an answer is read as."""

    city: Literal["Muş", "Van"]
    is_fine: bool


def routes_of(described: Any) -> set[str]:
    """The routes of an OpenAPI document, as GET /path."""
    return {
        f"{method.upper()} {path}"
        for path, methods in described["paths"].items()
        for method in methods
        if method in METHODS
    } | {"GET /", "GET /openapi.json"}


def client_calls() -> list[str]:
    """All that the client can call: the methods of its resources that are here, and the names of the others."""
    with openai.OpenAI(api_key="none") as client:
        found = _resources(client) - {"chat"}
        calls = {name for name in found if name not in HERE}
        for name in HERE:
            resource = client
            for part in name.split("."):
                resource = getattr(resource, part)
            below = _resources(resource)
            methods = {
                key for key, _ in inspect.getmembers(type(resource), inspect.isfunction) if key[0] != "_"
            }
            calls |= {f"{name}.{key}" for key in methods | below}
    return sorted(calls)


def _resources(owner: Any) -> set[str]:
    """The names of a client's or a resource's resources."""
    names = {
        key
        for one in type(owner).__mro__
        for key, value in vars(one).items()
        if type(value).__name__ == "cached_property"
    }
    return {name for name in names if not name.startswith(("with_", "_"))}


def _absent(call: Callable[[Client], Any], is_ending: bool = False) -> Call:
    """`is_ending`: the client itself warns that OpenAI ends this."""

    def show(client: Client) -> None:
        """Not here: 404."""
        with (
            pytest.warns() if is_ending else nullcontext(),
            pytest.raises(openai.NotFoundError, match=LISTED),
        ):
            call(client)

    return show


def _no_method(call: Callable[[Client], Any]) -> Call:
    def show(client: Client) -> None:
        """Not here: 405."""
        with pytest.raises(openai.APIStatusError, match=LISTED) as caught:
            call(client)
        assert caught.value.status_code == 405

    return show


def _at(client: Client, path: str) -> str:
    """An address outside /v1."""
    return str(client.base_url.join(path))


def chat_create(client: Client) -> None:
    """Here, also streamed."""
    assert Chat(client)().object == "chat.completion"
    assert next(iter(Chat(client)(stream=True))).object == "chat.completion.chunk"


def chat_parse(client: Client) -> None:
    """Here: the answer as an object of your class."""
    answer = client.chat.completions.parse(
        model="mmrec", messages=MESSAGES, response_format=Report, temperature=0, max_tokens=250,  # type: ignore[arg-type]
    )  # fmt: skip
    assert isinstance(answer.choices[0].message.parsed, Report)


def chat_stream(client: Client) -> None:
    """Here: the client's own helper for streams."""
    with client.chat.completions.stream(model="mmrec", messages=MESSAGES, max_tokens=4) as stream:  # type: ignore[arg-type]
        assert {event.type for event in stream} >= {"chunk", "content.delta"}


def completions_create(client: Client) -> None:
    """Here, also streamed."""
    assert Completions(client)().object == "text_completion"
    assert next(iter(Completions(client)(stream=True))).object == "text_completion"


def embeddings_create(client: Client) -> None:
    """Here."""
    assert Embeddings(client)().object == "list"


def models_list(client: Client) -> None:
    """Here: models, MODEL:ADAPTER, and aliases, each with its `root` and its `context_limit`."""
    rows = {row.id: row.to_dict() for row in client.models.list()}
    assert set(rows) == {"mmrec", "llama", "mm-rec-100m"}
    assert rows["mm-rec-100m"]["root"] == "mmrec" and rows["mmrec"]["context_limit"] is None
    assert rows["llama"]["context_limit"] == 512


def models_retrieve(client: Client) -> None:
    """Here."""
    assert client.models.retrieve("llama").id == "llama"
    with pytest.raises(openai.NotFoundError, match="there are mmrec, llama, mm-rec-100m"):
        client.models.retrieve("gpt-4o")


def responses_create(client: Client) -> None:
    """Here, also streamed."""
    assert Responses(client)().object == "response"
    assert next(iter(Responses(client)(stream=True))).type == "response.created"


def responses_parse(client: Client) -> None:
    """Here: the answer as an object of your class."""
    answer = client.responses.parse(
        model="mmrec", input="Hello!", text_format=Report, temperature=0, max_output_tokens=250
    )
    assert isinstance(answer.output_parsed, Report)


def responses_stream(client: Client) -> None:
    """Here: the client's own helper for streams."""
    with client.responses.stream(model="mmrec", input="Hello!", max_output_tokens=4) as stream:
        assert {event.type for event in stream} >= {"response.created", "response.output_text.delta"}


def responses_retrieve(client: Client) -> None:
    """Here: a response that was kept, as it was given but for log-probabilities; not as a stream, and no `include`."""
    made = Responses(client)(metadata={"a": "b"})
    assert client.responses.retrieve(made.id).to_dict() == made.to_dict()
    for name, value in (
        ("stream", True),
        ("include", ["message.output_text.logprobs"]),
        ("starting_after", 1),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.retrieve(made.id, **{name: value})  # type: ignore[call-overload]
        assert caught.value.param == name


def responses_delete(client: Client) -> None:
    """Here."""
    made = Responses(client)()
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def responses_input_items(client: Client) -> None:
    """Here: what was new in the request of a response, the last first; `after`, `limit` and `order`."""
    made = Responses(client)(input="And?", previous_response_id=Responses(client)().id)
    [item] = client.responses.input_items.list(made.id)
    assert item.content[0].text == "And?"  # type: ignore[union-attr]


def tokenize(client: Client) -> None:
    """The ids of `prompt`, or of `messages` (and `tools`) as the model reads them."""
    plain, laid_out = (
        client.post(_at(client, "/tokenize"), cast_to=object, body={"model": "mmrec", **given})
        for given in ({"prompt": "Hello!"}, {"messages": MESSAGES})
    )
    assert plain["count"] == len(plain["tokens"]) < laid_out["count"] == Chat(client)().usage.prompt_tokens  # type: ignore[index]


def detokenize(client: Client) -> None:
    """The text of `tokens`, special ones too."""
    told: Any = client.post(
        _at(client, "/tokenize"), cast_to=object, body={"model": "mmrec", "prompt": "Küçük"}
    )
    body = {"model": "mmrec", "tokens": told["tokens"]}
    back: Any = client.post(_at(client, "/detokenize"), cast_to=object, body=body)
    assert back["prompt"] == "<|endoftext|>Küçük"  # this tokenizer begins a text with it


def tokenizer_info(client: Client) -> None:
    """The special tokens and the template of a `model`'s tokenizer, or of the first model's."""
    told: Any = client.get(_at(client, "/tokenizer_info"), cast_to=object)
    assert told["eos_token"] == "<|endoftext|>" and "assistant" in told["chat_template"]
    assert told == client.get(_at(client, "/tokenizer_info?model=llama"), cast_to=object)


def begin_session(client: Client, **body: Any) -> Any:
    return client.post("/sessions", cast_to=object, body={"model": "mmrec", **body})


def create_session(client: Client) -> None:
    """A new session of a `model`, which has read `messages` (and `tools`), or nothing yet."""
    made = begin_session(client, messages=MESSAGES, tools=TOOLS)
    assert made["object"] == "session" and made["length"] > 0 and made["bytes_per_token"] == 0
    assert begin_session(client)["length"] == begin_session(client, model="llama")["length"] == 0
    grows = begin_session(client, model="llama", messages=MESSAGES)
    assert grows["bytes_per_token"] > 0


def list_sessions(client: Client) -> None:
    """The sessions, newest first; `after` an id, at most `limit`."""
    made = [begin_session(client)["id"] for _ in range(3)]
    page: Any = client.get("/sessions", cast_to=object, options={"params": {"limit": 2}})
    assert [row["id"] for row in page["data"]] == [made[2], made[1]] and page["has_more"]
    rest: Any = client.get("/sessions", cast_to=object, options={"params": {"after": page["last_id"]}})
    assert rest["data"][0]["id"] == made[0]


def get_session(client: Client) -> None:
    """One session: what it has read, in tokens, and what it costs, in bytes."""
    made = begin_session(client, messages=MESSAGES)
    assert client.get(f"/sessions/{made['id']}", cast_to=object) == made
    with pytest.raises(openai.NotFoundError, match="there is no session"):
        client.get("/sessions/sess_none", cast_to=object)


def fork_session(client: Client) -> None:
    """A new session that has read the same; each goes on by itself."""
    made = begin_session(client, messages=MESSAGES)
    forked: Any = client.post(f"/sessions/{made['id']}/fork", cast_to=object)
    assert forked["id"] != made["id"] and forked["length"] == made["length"]
    Chat(client)(session=forked["id"])
    kept: Any = client.get(f"/sessions/{made['id']}", cast_to=object)
    grown: Any = client.get(f"/sessions/{forked['id']}", cast_to=object)
    assert kept["length"] == made["length"] < grown["length"]


def delete_session(client: Client) -> None:
    """Forget a session, and its file."""
    made = begin_session(client)
    assert client.delete(f"/sessions/{made['id']}", cast_to=object)["deleted"]  # type: ignore[index]
    with pytest.raises(openai.NotFoundError):
        Chat(client)(session=made["id"])


def health(client: Client) -> None:
    """Whether the server is at work, or 503, `degraded` and why it cannot keep what it should; needs no key."""
    told: Any = client.get(_at(client, "/health"), cast_to=object)
    assert told["status"] == "ok" and told["models"] == ["mmrec", "llama"]


def metrics(client: Client) -> None:
    """Figures for Prometheus: requests, tokens, times to the first token, what is going on now, and what is kept."""
    Chat(client)()
    told = client.get(_at(client, "/metrics"), cast_to=str)
    for name in (
        "mmrec_requests_total",
        "mmrec_tokens_total",
        "mmrec_first_token_seconds_bucket",
        "mmrec_active",
        "mmrec_stored_bytes",
    ):
        assert re.search(f"^{name}[ {{]", told, re.MULTILINE)


def page(client: Client) -> None:
    """The chat page."""
    assert client.get(_at(client, "/"), cast_to=str).startswith("<!doctype html>")


def openapi(client: Client) -> None:
    """All of this for programs, as OpenAPI."""
    told: Any = client.get(_at(client, "/openapi.json"), cast_to=object)
    assert told["openapi"].startswith("3.") and "/v1/chat/completions" in told["paths"]


ROUTES: dict[str, Call] = {
    "POST /v1/chat/completions": chat_create,
    "POST /v1/completions": completions_create,
    "POST /v1/responses": responses_create,
    "GET /v1/responses/{response_id}": responses_retrieve,
    "DELETE /v1/responses/{response_id}": responses_delete,
    "GET /v1/responses/{response_id}/input_items": responses_input_items,
    "POST /v1/embeddings": embeddings_create,
    "GET /v1/models": models_list,
    "GET /v1/models/{name}": models_retrieve,
    "POST /v1/sessions": create_session,
    "GET /v1/sessions": list_sessions,
    "GET /v1/sessions/{session_id}": get_session,
    "POST /v1/sessions/{session_id}/fork": fork_session,
    "DELETE /v1/sessions/{session_id}": delete_session,
    "POST /tokenize": tokenize,
    "POST /detokenize": detokenize,
    "GET /tokenizer_info": tokenizer_info,
    "GET /health": health,
    "GET /metrics": metrics,
    "GET /": page,
    "GET /openapi.json": openapi,
}

CALLS: dict[str, Call] = {
    "chat.completions.create": chat_create,
    "chat.completions.parse": chat_parse,
    "chat.completions.stream": chat_stream,
    "chat.completions.retrieve": _absent(lambda client: client.chat.completions.retrieve("x")),
    "chat.completions.update": _absent(lambda client: client.chat.completions.update("x", metadata={})),
    "chat.completions.list": _no_method(lambda client: client.chat.completions.list()),
    "chat.completions.delete": _absent(lambda client: client.chat.completions.delete("x")),
    "chat.completions.messages": _absent(lambda client: client.chat.completions.messages.list("x")),
    "completions.create": completions_create,
    "embeddings.create": embeddings_create,
    "models.list": models_list,
    "models.retrieve": models_retrieve,
    "models.delete": _no_method(lambda client: client.models.delete("mmrec")),
    "responses.create": responses_create,
    "responses.parse": responses_parse,
    "responses.stream": responses_stream,
    "responses.retrieve": responses_retrieve,
    "responses.delete": responses_delete,
    "responses.input_items": responses_input_items,
    "responses.cancel": _absent(lambda client: client.responses.cancel("x")),
    # Its handshake is a GET of /v1/responses; the client makes it only where websockets is installed.
    "responses.connect": _no_method(lambda client: client.get("/responses", cast_to=object)),
    "responses.compact": _no_method(lambda client: client.responses.compact(model="mmrec")),
    "responses.input_tokens": _no_method(lambda client: client.responses.input_tokens.count(model="mmrec")),
    "admin": _absent(lambda client: client.admin.organization.users.list()),
    "audio": _absent(lambda client: client.audio.speech.create(input="x", model="x", voice="alloy")),
    "batches": _absent(lambda client: client.batches.list()),
    "beta": _absent(lambda client: client.beta.chatkit.threads.list()),
    "containers": _absent(lambda client: client.containers.list()),
    "content_provenance_checks": _absent(lambda client: client.content_provenance_checks.create(file=b"x")),
    "conversations": _absent(lambda client: client.conversations.create()),
    "decisions": _absent(lambda client: client.decisions.create(input="x", model="x", questions=[])),
    "evals": _absent(lambda client: client.evals.list()),
    "files": _absent(lambda client: client.files.list()),
    "fine_tuning": _absent(lambda client: client.fine_tuning.jobs.list()),
    "images": _absent(lambda client: client.images.generate(prompt="x")),
    "live": _absent(lambda client: client.live.sessions.hangup("x")),
    "moderations": _absent(lambda client: client.moderations.create(input="x")),
    "realtime": _absent(lambda client: client.realtime.client_secrets.create()),
    "safety": _absent(lambda client: client.safety.alerts.retrieve("x")),
    "skills": _absent(lambda client: client.skills.list()),
    "uploads": _absent(lambda client: client.uploads.cancel("x")),
    "vector_stores": _absent(lambda client: client.vector_stores.list()),
    "videos": _absent(lambda client: client.videos.list(), is_ending=True),
    "webhooks": _absent(lambda client: client.webhooks.event_types.list()),
}
