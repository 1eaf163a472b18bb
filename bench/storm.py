"""A storm of clients for bench/serve.py: what they ask, what they should get, and how the server is afterwards.

Clients ask in many ways, all answered greedily, and stop listening, lose patience or send nonsense. Every answer that
is finished must be that of a lone request made before: in float32 always; in bfloat16 another token may come only where
the two were closer than 2⁻⁷ in the lone answer. Text that was cut off must be a beginning of the answer.
"""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from serving import Server, client, events_of
from storm_questions import Question, nonsense, questions

# Few may wait, so that some are sent away and ask again.
OPTIONS = ("--keep-memory", "32", "--max-tokens", "256", "--max-prompt", "2000", "--most-waiting", "16")
WARM_UP = 300  # requests, of the 2,000, after which memory may no longer grow
GROWTH_MB = 48  # by which it may all the same
CLOSE = 2.0**-7
WAYS = {"plain": 34, "streamed": 30, "aborted": 14, "nonsense": 14, "impatient": 8}


@dataclass(frozen=True)
class Token:
    """A token of an answer, its log-probability, and the likeliest there."""

    text: str
    logprob: float
    likeliest: dict[str, float]


@dataclass
class Text:
    """One choice of an answer; calls as names and arguments."""

    text: str = ""
    calls: dict[int, list[str]] = field(default_factory=dict)
    finish: str = ""
    tokens: list[Token] = field(default_factory=list)

    @property
    def said(self) -> tuple[str, list[list[str]], str]:
        """What must be equal."""
        return self.text, list(self.calls.values()), self.finish


@dataclass
class Tally:
    """All that happened."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    close: list[str] = field(default_factory=list)


# What came, whole or in events, as choices.


def choices_of(objects: Sequence[dict[str, Any]], chat: bool) -> dict[int, Text]:
    """The choices of a whole answer, or of the events of a stream."""
    found: dict[int, Text] = {}
    for one in objects:
        if "error" in one:
            raise ValueError(f"a stream ended with {one['error']}")
        for choice in one["choices"]:
            text = found.setdefault(choice["index"], Text())
            (take_chat if chat else take_completion)(text, choice)
            text.finish = choice["finish_reason"] or text.finish
    return found


def take_chat(text: Text, choice: dict[str, Any]) -> None:
    message = choice.get("message") or choice.get("delta") or {}
    text.text += message.get("content") or ""
    for place, call in enumerate(message.get("tool_calls") or []):
        known = text.calls.setdefault(call.get("index", place), ["", ""])
        known[0] += call["function"].get("name") or ""
        known[1] += call["function"].get("arguments") or ""
    for token in (choice["logprobs"] or {}).get("content") or []:
        likeliest = {one["token"]: one["logprob"] for one in token["top_logprobs"]}
        text.tokens.append(Token(token["token"], token["logprob"], likeliest))


def take_completion(text: Text, choice: dict[str, Any]) -> None:
    text.text += choice["text"]
    lists = choice["logprobs"] or {"tokens": [], "token_logprobs": [], "top_logprobs": []}
    for token, value, likeliest in zip(
        lists["tokens"], lists["token_logprobs"], lists["top_logprobs"], strict=True
    ):
        text.tokens.append(Token(token, value or 0.0, likeliest or {}))


def vectors_of(answer: dict[str, Any]) -> Any:
    """The vectors of an answer, one a row."""
    rows = [row["embedding"] for row in answer["data"]]
    return np.array(
        [np.frombuffer(base64.b64decode(row), "<f4") if isinstance(row, str) else row for row in rows]
    )


def differing(expected: dict[int, Text], got: dict[int, Text]) -> tuple[float, str] | None:
    """None where the answers are equal, or the gap between the tokens at the first place that differs, and where."""
    if expected.keys() != got.keys():
        return float("inf"), f"choices {sorted(got)}, not {sorted(expected)}"
    for number, lone in expected.items():
        other = got[number]
        if lone.said == other.said:
            continue
        for place, (ours, theirs) in enumerate(zip(lone.tokens, other.tokens, strict=False)):
            if ours.text != theirs.text:
                gap = abs(ours.logprob - ours.likeliest.get(theirs.text, theirs.logprob))
                return gap, f"token {place}: {theirs.text!r}, not {ours.text!r}, which was {gap:.4f} likelier"
        return float("inf"), f"{other.said}, not {lone.said}"
    return None


def judge(question: Question, got: Any, precision: str, tally: Tally) -> None:
    """Compare an answer with that of the lone request."""
    if question.path == "/v1/embeddings":
        away = float(np.abs(got - question.expected).max())
        if away > (1e-5 if precision == "float32" else CLOSE):
            tally.wrong.append(f"an embedding is {away:.2g} away from that of the lone request")
        return
    if (found := differing(question.expected, got)) is None:
        tally.counts["equal"] += 1
        return
    gap, where = found
    is_close = precision != "float32" and gap < CLOSE
    (tally.close if is_close else tally.wrong).append(f"{question.path} {question.body['model']}: {where}")


# The clients.


async def ask(asking: httpx.AsyncClient, question: Question, streamed: bool, tally: Tally) -> Any:
    """The answer to a question: choices, or vectors. Asks again where the queue is full."""
    body = {**question.body, "stream": True} if streamed else question.body
    while True:
        answer = await asking.post(question.path, json=body)
        if answer.status_code != 429:
            break
        tally.counts["429, asked again"] += 1
        await asyncio.sleep(float(answer.headers["Retry-After"]))
    if answer.status_code != 200:
        raise ValueError(f"{question.path}: {answer.status_code} {answer.text[:300]}")
    if question.path == "/v1/embeddings":
        return vectors_of(answer.json())
    objects = list(events_of(answer.content)) if streamed else [answer.json()]
    return choices_of(objects, "chat" in question.path)


async def abort(
    asking: httpx.AsyncClient, question: Question, parts: int, precision: str, tally: Tally
) -> None:
    """Go away in the middle of a stream; what came must be a beginning of the answer."""
    body, came = {**question.body, "stream": True}, b""
    async with asking.stream("POST", question.path, json=body) as answer:
        if answer.status_code != 200:
            tally.counts[f"{answer.status_code} where it was to be aborted"] += 1
            return
        async for part in answer.aiter_raw():
            came += part
            parts -= 1
            if parts <= 0:
                break
    whole = came[: came.rfind(b"\n\n") + 2]
    for number, text in choices_of(list(events_of(whole)), "chat" in question.path).items():
        if not question.expected[number].text.startswith(text.text):
            tally.counts["aborted after another beginning"] += 1
            if precision == "float32":
                tally.wrong.append(
                    f"{question.path}: it began with {text.text!r}, not {question.expected[number].text!r}"
                )


async def send_nonsense(asking: httpx.AsyncClient, wrong: tuple[str, bytes, int], tally: Tally) -> None:
    """Send what cannot be answered; an error in OpenAI's shape must come."""
    path, body, status = wrong
    answer = await asking.post(path, content=body, headers={"Content-Type": "application/json"})
    if answer.status_code == 429:  # some is so little wrong that it is found out at the end of the queue
        tally.counts["429 to nonsense"] += 1
        return
    said = answer.json().get("error", {})
    if answer.status_code != status or not {"message", "type", "param", "code"} <= said.keys():
        tally.wrong.append(f"{path} {body[:80]!r}: {answer.status_code} {answer.text[:200]}, not {status}")


async def one_request(
    asking: httpx.AsyncClient, source: random.Random, known: Sequence[Question],
    bad: Sequence[tuple[str, bytes, int]], precision: str, tally: Tally,
) -> None:  # fmt: skip
    """One request of the storm, in one of the ways."""
    [way] = source.choices(list(WAYS), WAYS.values())
    tally.counts[way] += 1
    question = source.choice(known)
    streams = question.path != "/v1/embeddings"
    try:
        if way == "nonsense":
            await send_nonsense(asking, source.choice(bad), tally)
        elif way == "aborted" and streams:
            await abort(asking, question, source.randint(1, 12), precision, tally)
        elif way == "impatient":
            body = {**question.body, "stream": streams and source.random() < 0.5}
            body = body if streams else question.body
            await asking.post(question.path, json=body, timeout=source.uniform(0.005, 0.5))
            tally.counts["impatient and answered"] += 1
        else:
            judge(
                question, await ask(asking, question, streams and way == "streamed", tally), precision, tally
            )
    except httpx.TimeoutException:
        if way != "impatient":
            tally.wrong.append(f"{question.path}: no answer in time")
    except (httpx.HTTPError, ValueError) as error:
        tally.wrong.append(f"{way} {question.path}: {type(error).__name__}: {error}")


async def clients(
    server: Server, numbers: range, count: int, known: Sequence[Question], precision: str, tally: Tally,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """So many clients, who share the requests of these numbers."""
    left, bad = iter(numbers), nonsense(known[0].body["model"])

    async def work() -> None:
        async with client(server) as asking:
            for number in left:
                await one_request(asking, random.Random(number), known, bad, precision, tally)
                if (number + 1) % 250 == 0:
                    say(f"{number + 1} requests, {server.rss_mb():.0f} MB: {dict(tally.counts)}")

    await asyncio.gather(*(work() for _ in range(count)))


async def lone(server: Server, known: Sequence[Question], precision: str, tally: Tally) -> None:
    """Ask every question alone: note the answers, or, where they are noted, compare."""
    async with client(server) as asking:
        for question in known:
            got = await ask(asking, question, False, tally)
            if question.expected is None:
                question.expected = got
            else:
                judge(question, got, precision, tally)


def settled(server: Server) -> tuple[float, float]:
    """Requests active and waiting, once there are none, or after ten seconds."""
    end = time.monotonic() + 10
    while True:
        now = server.figure("mmrec_active"), server.figure("mmrec_waiting")
        if now == (0, 0) or time.monotonic() > end:
            return now
        time.sleep(0.2)


def statuses(server: Server) -> dict[str, int]:
    """Answers by status, as the server counts them; 499 is that nobody was there any more."""
    found: Counter[str] = Counter()
    for line in httpx.get(f"{server.url}/metrics").text.splitlines():
        if line.startswith("mmrec_requests_total{"):
            found[line.partition('status="')[2][:3]] += int(float(line.rpartition(" ")[2]))
    return dict(sorted(found.items()))


def run(
    server: Server,
    models: Sequence[str],
    precision: str,
    requests: int,
    count: int,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], bool]:
    """The storm; returns its figures, and whether nothing was wrong."""
    tally, known = Tally(), questions(models, precision)
    warm_up = min(WARM_UP, requests // 2)
    asyncio.run(lone(server, known, precision, tally))
    say(f"{len(known)} lone answers; {server.rss_mb():.0f} MB")
    asyncio.run(clients(server, range(warm_up), count, known, precision, tally, say))
    settled(server)
    before, start = server.rss_mb(), time.perf_counter()
    asyncio.run(clients(server, range(warm_up, requests), count, known, precision, tally, say))
    seconds, going = time.perf_counter() - start, settled(server)
    after = server.rss_mb()
    asyncio.run(lone(server, known, precision, tally))
    by_status = statuses(server)
    values = {
        "requests": requests, "clients": count, **tally.counts, "wrong": len(tally.wrong),
        "differ_where_close": len(tally.close), "statuses": by_status, "active_waiting_after": going,
        "mb_after_warm_up": round(before), "mb_after": round(after), "growth_allowed_mb": GROWTH_MB,
        "kept_mb": round(server.figure("mmrec_kept_bytes") / 2**20, 1),
        "requests_per_second": round((requests - warm_up) / seconds, 1),
    }  # fmt: skip
    problems = list(tally.wrong)
    problems += [f"{number} answers were {status}" for status, number in by_status.items() if status >= "500"]
    problems += [f"active and waiting afterwards: {going}"] if going != (0, 0) else []
    problems += [f"memory grew by {after - before:.0f} MB"] if after - before > GROWTH_MB else []
    for text in tally.close[:50]:
        say(f"close: {text}")
    for text in problems[:50]:
        say(f"WRONG: {text}")
    if logged := server.log.read_text().partition("Ctrl-C ends it.")[2].strip():
        say(f"the server said:\n{logged[-3000:]}")
    return values, not problems
