"""The server over HTTP: many streams at once, long contexts, sessions that go on, and a storm of clients.

    python bench/serve.py [--quick] [--what streams] [--family mmrec] [--precision float32] [--rounds 5]

`mmrec serve` runs in a process of its own with models of random weights (25m: width 512, 8 layers, vocabulary 4,000),
and is asked as any client asks it. Each measure ends with one line of JSON:

    streams    128 tokens read and 128 written by one stream, then by eight at once: tokens/s from the first request to
               the last token, and while all are being written; the time to a request's first token while eight others
               are being written (goal: eight together at least 4 times one)
    context    MM-Rec's rate of writing after 64 tokens and after 65,536 (goal: within 5 %)
    session    the first token of a 20-token turn after 50,000 tokens relative to that of a fresh 20-token prompt (goal:
               at most 1.2); the sizes of the files of sessions
    latency    a one-token chat on a kept connection relative to the engine's own time for the same parts (goal: under
               1.3), which are two passes here, for the prefix cache
    beside     what is left of the rates of calls, one-token chats and writing beside one busy process and two (goal: at
               least 0.4 beside one)
    storm      2,000 requests of 50 clients, some of which go away or send nonsense (see storm.py); its goals are those
               of correctness, and the exit status is 1 where one is missed

The client shares the machine's cores with the server, so what it costs is in the figures.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chats
import httpx
import protocol
import serving
import storm
from serving import FAMILIES, Server, Streamed, client, facts, make_model, stream

WHAT = ("streams", "context", "session", "latency", "beside", "storm")
PROMPT, NEW, STREAMS = 128, 128, 8
SETTLE = 0.2  # seconds between requests whose first token is timed
WORDS = ("ev", "su", "göl", "kuş", "the", "a", "in", "sees", "ağaç", "bir", "her", "old")


def say(text: str) -> None:
    """Tell how far things are."""
    print(text, file=sys.stderr, flush=True)


def result(what: str, values: dict[str, Any]) -> None:
    """The line of JSON of a comparison."""
    print(json.dumps({**facts(), "what": what, **values}), flush=True)


def median_range(values: Sequence[float], digits: int = 3) -> dict[str, Any]:
    """The median with its range."""
    rounded = [round(value, digits) for value in (min(values), max(values))]
    return {"ratio": round(statistics.median(values), digits), "ratio_range": rounded}


# Streams: tokens/s of one and of eight.


def writing(model: str, source: random.Random, new: int, **more: Any) -> dict[str, Any]:
    """A request that reads 128 tokens and writes greedily; logprobs: an event for every token."""
    prompt = [source.randrange(300, serving.VOCABULARY - 300) for _ in range(PROMPT)]
    options = {"stream_options": {"include_usage": True}, **more}
    return {"model": model, "prompt": prompt, "max_tokens": new, "temperature": 0, **options}


def written(answers: Sequence[Streamed], new: int) -> float:
    """Tokens/s while all of them were being written, each event being an equal share of its answer's tokens."""
    start, end = max(answer.came[0] for answer in answers), min(answer.end for answer in answers)
    shares = (sum(start < at <= end for at in answer.came) / len(answer.came) for answer in answers)
    return new * sum(shares) / (end - start)


async def together(asking: httpx.AsyncClient, bodies: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Tokens/s of requests made at once: from the first request to the last token, and while all were written."""
    answers = await asyncio.gather(*(stream(asking, "/v1/completions", body) for body in bodies))
    new = bodies[0]["max_tokens"]
    for answer in answers:
        usage = list(answer.events())[-1]["usage"]
        assert usage["completion_tokens"] == new, usage
    seconds = max(answer.end for answer in answers) - min(answer.asked for answer in answers)
    return new * len(answers) / seconds, written(answers, new)


async def first_tokens(
    asking: httpx.AsyncClient, model: str, source: random.Random, count: int
) -> list[float]:
    """Seconds to the first token of requests that come at random while eight others are always being written."""

    async def keep_writing(own: random.Random) -> None:
        while True:
            await stream(asking, "/v1/completions", writing(model, own, NEW))

    writers = [asyncio.create_task(keep_writing(random.Random(number))) for number in range(STREAMS)]
    seconds = []
    await asyncio.sleep(2)
    for _ in range(count):
        await asyncio.sleep(source.expovariate(2))
        answer = await stream(asking, "/v1/completions", writing(model, source, 8, logprobs=0))
        seconds.append(answer.first)
    for writer in writers:
        writer.cancel()
    await asyncio.gather(*writers, return_exceptions=True)
    return seconds


async def streams(server: Server, model: str, rounds: int, probes: int) -> dict[str, Any]:
    """One stream and eight, in turn, and the time to the first token under load."""
    source, one, eight = random.Random(0), [], []
    async with client(server) as asking:
        for number in range(rounds + 1):
            one.append(await together(asking, [writing(model, source, NEW)]))
            eight.append(await together(asking, [writing(model, source, NEW) for _ in range(STREAMS)]))
            say(f"round {number}/{rounds} {model}: one {one[-1][0]:.0f}, eight {eight[-1][0]:.0f} tokens/s")
        first = sorted(await first_tokens(asking, model, source, probes))
    pairs = list(zip(one, eight, strict=True))[1:]  # the first round warms up
    return {
        **median_range([many[0] / alone[0] for alone, many in pairs]),
        "one_tokens_per_second": round(statistics.median(alone[0] for alone, _ in pairs), 1),
        "eight_tokens_per_second": round(statistics.median(many[0] for _, many in pairs), 1),
        "writing_ratio": round(statistics.median(many[1] / alone[1] for alone, many in pairs), 3),
        "one_writing": round(statistics.median(alone[1] for alone, _ in pairs), 1),
        "eight_writing": round(statistics.median(many[1] for _, many in pairs), 1),
        "first_token_p50_ms": round(1000 * first[len(first) // 2], 1),
        "first_token_p95_ms": round(1000 * first[min(len(first) - 1, round(0.95 * len(first)))], 1),
        "first_token_requests": len(first), "rounds": rounds, "prompt": PROMPT, "new": NEW, "goal": 4,
    }  # fmt: skip


# Sessions: long contexts.


class Talk:
    """Requests about sessions, to one model."""

    def __init__(self, server: Server, model: str) -> None:
        self.model, self._server = model, server
        self._plain = httpx.Client(base_url=server.url, timeout=600, trust_env=False)
        self._source = random.Random(1)

    def words(self, tokens: int) -> str:
        """A text never sent before, which makes a conversation's first message of about so many tokens."""
        text = " ".join(self._source.choice(WORDS) for _ in range(tokens))
        messages = [{"role": "user", "content": text}]
        count = self.post("/tokenize", {"model": self.model, "messages": messages})["count"]
        return text[: len(text) * tokens // int(count)]

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request."""
        answer = self._plain.post(path, json=body)
        if answer.status_code != 200:
            raise SystemExit(f"{path}: {answer.status_code} {answer.text[:500]}")
        found: dict[str, Any] = answer.json()
        return found

    def session(self, tokens: int) -> dict[str, Any]:
        """A new session that has read about so many."""
        messages = [{"role": "user", "content": self.words(tokens)}]
        return self.post("/v1/sessions", {"model": self.model, "messages": messages})

    def fork(self, session: dict[str, Any]) -> str:
        """A copy of a session."""
        return str(self.post(f"/v1/sessions/{session['id']}/fork", {})["id"])

    def forget(self, session_id: str) -> None:
        """Delete a session."""
        self._plain.delete(f"/v1/sessions/{session_id}").raise_for_status()

    def turn(self, text: str, new: int, **more: Any) -> Streamed:
        """Ask in chat, with an event for every token; the first that counts is that of the first token."""
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        return self._stream("/v1/chat/completions", {**body, "max_tokens": new, "logprobs": True, **more})

    def respond(self, text: str, new: int, previous: str) -> Streamed:
        """Go on from a response."""
        body = {
            "model": self.model,
            "input": text,
            "temperature": 0,
            "max_output_tokens": new,
            "top_logprobs": 1,
        }
        return self._stream("/v1/responses", {**body, "previous_response_id": previous}, b"output_text.delta")

    def _stream(self, path: str, body: dict[str, Any], mark: bytes = b'"logprobs":{') -> Streamed:
        async def ask() -> Streamed:
            async with client(self._server) as asking:
                return await stream(asking, path, body, mark)

        return asyncio.run(ask())


def rate(talk: Talk, session: dict[str, Any], text: str) -> float:
    """Tokens/s of a turn of a copy of a session, from its first token to its last."""
    copy = talk.fork(session)
    answer = talk.turn(text, NEW, session=copy)
    talk.forget(copy)
    return (NEW - 1) / (answer.end - answer.came[0])


def context(server: Server, model: str, rounds: int, longest: int) -> dict[str, Any]:
    """The rate of writing after few tokens and after many."""
    talk = Talk(server, model)
    start = time.perf_counter()
    long = talk.session(longest)
    say(f"{long['length']:,} tokens read in {time.perf_counter() - start:.1f} s")
    short, text = talk.session(64), talk.words(20)
    rates = [(rate(talk, short, text), rate(talk, long, text)) for _ in range(rounds + 1)][1:]
    say(f"tokens/s after few and many: {[(round(few, 1), round(many, 1)) for few, many in rates]}")
    return {
        **median_range([many / few for few, many in rates]),
        "short": short["length"], "long": long["length"], "rounds": rounds, "new": NEW, "goal": 0.95,
        "short_tokens_per_second": round(statistics.median(few for few, _ in rates), 1),
        "long_tokens_per_second": round(statistics.median(many for _, many in rates), 1),
    }  # fmt: skip


def session(server: Server, model: str, rounds: int, longest: int) -> dict[str, Any]:
    """The time to the first token of a turn of a long session relative to that of a fresh prompt."""
    talk = Talk(server, model)
    long = talk.session(longest)
    said = {"model": model, "input": talk.words(longest), "max_output_tokens": 4, "temperature": 0}
    previous = talk.post("/v1/responses", said)
    say(f"{long['length']:,} and {previous['usage']['input_tokens']:,} tokens read")
    order, first = ["fresh", "session", "previous_response"], {}
    ratios: dict[str, list[float]] = {name: [] for name in order}
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for number in range(rounds + 2):
        copy = talk.fork(long)
        asking = {
            "fresh": lambda: talk.turn(talk.words(20), 4),
            "session": lambda copy=copy: talk.turn(talk.words(20), 4, session=copy),
            "previous_response": lambda: talk.respond(talk.words(20), 4, previous["id"]),
        }
        # Each is asked after each of the others in turn, when what the last one left to be written is written.
        random.Random(number).shuffle(order)
        for name in order:
            time.sleep(SETTLE)
            first[name] = asking[name]().first
        talk.forget(copy)
        if number >= 2:  # the first two warm up
            for name in order:
                ratios[name].append(first[name] / first["fresh"])
                seconds[name].append(first[name])
    return {
        **median_range(ratios["session"]),
        "previous_response_ratio": round(statistics.median(ratios["previous_response"]), 3),
        "tokens": long["length"], "rounds": rounds, "goal": 1.2,
        **{f"{name}_ms": round(1000 * statistics.median(values), 2) for name, values in seconds.items()},
    }  # fmt: skip


def sizes(server: Server, model: str, lengths: Sequence[int]) -> dict[str, Any]:
    """Bytes of the files of sessions of such lengths."""
    talk = Talk(server, model)
    made = [talk.session(length) for length in lengths]
    return {"file_bytes": {one["length"]: one["bytes"] for one in made}}


def measure(what: str, family: str, folder: Path, scratch: Path, precision: str, chosen: Any) -> bool:
    """Measure one model; returns whether what must be right was right."""
    quick, fine = chosen.quick, True
    rounds = 1 if quick else chosen.rounds
    options = ["--precision", precision, "--device", "cpu"] + (
        ["--most-active", "16"] if what == "streams" else []
    )
    with Server([folder], scratch / f"{what}-{family}-{precision}", *options) as server:
        if what == "streams":
            values = asyncio.run(streams(server, family, rounds, 5 if quick else 40))
        elif what == "context":
            values = context(server, family, rounds, 4_096 if quick else 65_536)
        elif what == "latency":
            values = chats.latency(server, family, folder, precision, 40 if quick else 60 * rounds)
        elif what == "beside":
            values = {"one": chats.beside_busy(server, family, 1, rounds), "goal": 0.4}
            values |= {"two": chats.beside_busy(server, family, 2, rounds)}
        else:
            long = 1_500 if family == "llama" else 4_000 if quick else 50_000
            values = session(server, family, rounds, long)
            values |= sizes(server, family, (1_000, 2_000 if family == "llama" else long))
            fine = family != "mmrec" or len(set(values["file_bytes"].values())) == 1
    result(what, {"family": family, "precision": precision, **values})
    if not fine:
        say(f"WRONG: the files of MM-Rec's sessions differ in size: {values['file_bytes']}")
    return fine


def storm_over(folders: dict[str, Path], scratch: Path, precision: str, chosen: Any) -> bool:
    """The storm over all models on one server; returns whether what must be right was right."""
    requests, clients = (300, 20) if chosen.quick else (2_000, 50)
    options = ["--precision", precision, "--device", "cpu", *storm.OPTIONS]
    with Server(list(folders.values()), scratch / f"storm-{precision}", *options) as server:
        values, fine = storm.run(server, list(folders), precision, requests, clients, say)
    result("storm", {"precision": precision, **values})
    return fine


def main() -> None:
    """Measure what is asked for."""
    options = protocol.parser(__doc__)
    options.add_argument("--what", choices=WHAT, action="append")
    options.add_argument("--family", choices=FAMILIES, action="append")
    options.add_argument("--precision", choices=("float32", "bfloat16", "int8"), action="append")
    options.add_argument("--shape", choices=list(serving.SHAPES))
    chosen = options.parse_args()
    fine = True
    with tempfile.TemporaryDirectory() as temporary:
        scratch, folders = Path(temporary), {}
        for family in chosen.family or FAMILIES:
            folders[family] = scratch / family
            make_model(folders[family], family, chosen.shape or ("small" if chosen.quick else "25m"))
        precisions = chosen.precision or (["float32"] if chosen.quick else ["float32", "bfloat16"])
        for what, precision in itertools.product(chosen.what or WHAT, precisions):
            if what == "storm":
                fine = storm_over(folders, scratch, precision, chosen) and fine
                continue
            for family, folder in folders.items():
                if what != "context" or family == "mmrec":
                    fine = measure(what, family, folder, scratch, precision, chosen) and fine
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
