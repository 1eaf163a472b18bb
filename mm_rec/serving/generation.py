"""From a request to text that comes: prompts, what was read before, and choices as they are written.

The engine's thread writes; the server's event loop reads. A choice that nobody reads any more is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from mm_rec.data.conversations.turns import closing_text
from mm_rec.inference.engine import Continuation, Session
from mm_rec.inference.sampling import Chosen, Constraint, Sampling
from mm_rec.inference.scheduler import Work
from mm_rec.inference.text_stream import TextStream, encode
from mm_rec.serving.errors import ApiError
from mm_rec.serving.models import Served


class Prompt:
    """What is to be read: a session that may have read some of it, and the rest in parts of ids.

    `texts` are those of the parts, and `text` what the session has read, where what is read is to be kept and found
    again. `cached` counts the tokens that need not be read again, `length` all of them.
    """

    def __init__(
        self, session: Session, parts: Sequence[Sequence[int]], texts: Sequence[str] = (), text: str = ""
    ) -> None:
        self.session, self.parts, self.texts, self.text = session, parts, texts, text
        self.cached = session.length
        self.length = session.length + sum(map(len, parts))

    @property
    def ending(self) -> str:
        """The text that it ends with, where texts are known."""
        return self.texts[-1] if self.texts else self.text

    @property
    def is_kept(self) -> bool:
        """Whether what is read is kept."""
        return bool(self.texts)


def prompt_for(served: Served, texts: Sequence[str]) -> Prompt:
    """A prompt of a conversation's parts, which begins where something of it was read before."""
    whole = "".join(texts)
    found = served.model.prefixes.find(served.name, whole)
    text, session = found or ("", served.session())
    rest, left = [], len(text)
    for part in texts:
        rest.append(part[left:])
        left = max(0, left - len(part))
    rest = [part for part in rest if part]
    return Prompt(session, [encode(served.model.tokenizer, part) for part in rest], rest, text)


@dataclass(slots=True)
class Usage:
    """Tokens of a request."""

    prompt: int
    cached: int = 0
    completion: int = 0
    reasoning: int = 0  # of the completion

    def chat(self) -> dict[str, object]:
        """As chat completions and completions have it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


_PACE = 0.02  # seconds
OnToken = Callable[[Chosen | None], None]


class Running:
    """A work of the engine as the event loop sees it: its tokens as they come, and its end.

    The loop looks at most every `_PACE` seconds, and at all works at once: waking it for every token would take the
    engine more time than the tokens do. `make` makes the work, for a function that it calls with the tokens; `seconds`
    is the longest that it may take. Raises QueueFullError where too many wait.
    """

    def __init__(self, served: Served, make: Callable[[OnToken], Work], seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._came, self._ended = asyncio.Event(), asyncio.Event()
        self._end = self._loop.time() + seconds
        self._tokens: deque[Chosen] = deque()
        self._is_awaited, self._has_begun = True, False
        self.work = make(self._take)
        served.model.batcher.submit(self.work)

    def _take(self, chosen: Chosen | None) -> None:
        """In the engine's thread: keep a token, and wake the loop if it waits for one."""
        if chosen is not None:
            self._tokens.append(chosen)
        if self._is_awaited or chosen is None:
            self._is_awaited = False
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                self._loop.call_soon_threadsafe(self._wake, chosen is None)

    def _wake(self, ended: bool) -> None:
        self._came.set()
        if ended:
            self._ended.set()

    async def tokens(self) -> AsyncGenerator[list[Chosen], None]:
        """What came since the last time, at least one token; raises what went wrong, ApiError after the time."""
        try:
            while not self._ended.is_set() or self._tokens:
                await self._wait()
                if tokens := [self._tokens.popleft() for _ in range(len(self._tokens))]:
                    yield tokens
            if self.work.error is not None:
                raise self.work.error
            if not self.work.finished:
                raise ApiError(503, "the server is stopping", code="shutting_down", type="server_error")
        finally:
            self.work.cancel()  # of no effect where it has ended

    async def _wait(self) -> None:
        """Wait for the next token, and, but for the first, for those that come soon after it."""
        if self._ended.is_set():
            return
        try:
            async with asyncio.timeout_at(self._end):
                await self._came.wait()
        except TimeoutError as error:
            raise ApiError(
                408, "this took longer than the server allows: ask for less", code="timeout"
            ) from error
        if self._has_begun:
            next_look = (self._loop.time() // _PACE + 1) * _PACE  # the same for all
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_look):
                    await self._ended.wait()
        self._has_begun = True
        self._came.clear()
        self._is_awaited = True


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of a choice: text, perhaps none yet, and the tokens that came."""

    text: str
    tokens: Sequence[Chosen]


class Choice:
    """One answer to a prompt, piece by piece. `finish` is "" while it goes on, then "stop" or "length"."""

    def __init__(
        self, served: Served, prompt: Prompt, sampling: Sampling, seconds: float, *,
        constraint: Constraint | None = None, logprobs: int | None = None, special: bool = False,
    ) -> None:  # fmt: skip
        """`logprobs`: so many of the likeliest tokens with each; `special`: special tokens are a part of the text."""
        self.served, self.prompt = served, prompt
        self.finish = ""
        self._ids: list[int] = []
        self._stream = TextStream(served.model.tokenizer, sampling.stop, special)
        session = prompt.session
        self._continuation = Continuation(session, sampling, served.model.stop_ids, constraint, logprobs)
        self._running = Running(served, self._work, seconds)

    @property
    def completion(self) -> int:
        """Tokens written so far."""
        return len(self._ids)

    def _work(self, take: OnToken) -> Work:
        prompt, continuation = self.prompt, self._continuation
        return Work(prompt.session, prompt.parts, take, continuation=continuation, on_read=self._on_read)

    def cancel(self) -> None:
        """Stop writing."""
        self._running.work.cancel()

    def _on_read(self, number: int) -> None:
        """Keep what was read where it ends with a message; the last part ends where the answer begins."""
        if self.prompt.is_kept and number < len(self.prompt.parts) - 1:
            text = self.prompt.text + "".join(self.prompt.texts[: number + 1])
            self.served.model.prefixes.keep(self.served.name, text, self.prompt.session.fork())

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """What comes, up to a stop token or string."""
        async with contextlib.aclosing(self._running.tokens()) as coming:
            async for tokens in coming:
                text, taken = "", len(self._ids)
                for chosen in tokens:
                    self._ids.append(chosen.token)
                    text += self._stream.push(chosen.token)
                    if self._stream.stopped:
                        break
                yield Piece(text, tokens[: len(self._ids) - taken])
                if self._stream.stopped:
                    self.finish = "stop"
                    return
        if text := self._stream.finish():
            yield Piece(text, ())
        self.finish = "stop" if self._stream.stopped else self._continuation.ended_by
        if self.prompt.is_kept and not self._stream.stopped:
            self._keep_reply()

    def finished_session(self) -> tuple[Session, str] | None:
        """The session that has read the answer too, its message ended, and the text that this added.

        None where it went on beyond a stop string.
        """
        if self._stream.stopped or not self.finish:
            return None
        tokenizer, session = self.served.model.tokenizer, self.prompt.session
        reply = str(
            tokenizer.decode(self._ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )
        closing = closing_text(tokenizer, reply)
        session.append(encode(tokenizer, closing))
        return session, reply + closing

    def _keep_reply(self) -> None:
        finished = self.finished_session()
        if finished is not None:
            session, added = finished
            text = self.prompt.text + "".join(self.prompt.texts) + added
            self.served.model.prefixes.keep(self.served.name, text, session)


async def begin_choices(
    served: Served, prompt: Prompt, samplings: Sequence[Sampling], seconds: float, *,
    constrain: Callable[[], Constraint] | None = None, logprobs: int | None = None, special: bool = False,
) -> list[Choice]:  # fmt: skip
    """Answers to one prompt, which is read once; each has its own sampling and, where asked for, constraint."""
    if len(samplings) > 1:
        await read_with(served, prompt.session, prompt.parts, seconds)
    choices: list[Choice] = []
    try:
        for sampling in samplings:
            one = prompt if len(samplings) == 1 else Prompt(prompt.session.fork(), ())
            constraint = None if constrain is None else await asyncio.to_thread(constrain)
            choices.append(
                Choice(
                    served, one, sampling, seconds, constraint=constraint, logprobs=logprobs, special=special
                )
            )
    except BaseException:
        for choice in choices:
            choice.cancel()
        raise
    return choices


async def read_with(
    served: Served, session: Session, parts: Sequence[Sequence[int]], seconds: float,
    read_segment: Callable[[Session], None] | None = None,
) -> None:  # fmt: skip
    """Read without writing; `read_segment` may take the engine's place, to get more out of it than the state."""
    running = Running(served, lambda take: Work(session, parts, take, read_segment=read_segment), seconds)
    async for _ in running.tokens():
        raise AssertionError("nothing is written by a work without a continuation")


async def merged(choices: Sequence[Choice]) -> AsyncGenerator[tuple[int, Piece], None]:
    """The pieces of several choices as they come, each with the number of its choice."""
    if len(choices) == 1:
        async with contextlib.aclosing(choices[0].pieces()) as pieces:
            async for piece in pieces:
                yield 0, piece
        return
    came: asyncio.Queue[tuple[int, Piece | None]] = asyncio.Queue()

    async def take(number: int, choice: Choice) -> None:
        try:
            async for piece in choice.pieces():
                came.put_nowait((number, piece))
        finally:
            came.put_nowait((number, None))

    tasks = [asyncio.create_task(take(number, choice)) for number, choice in enumerate(choices)]
    try:
        going = len(tasks)
        while going:
            number, new = await came.get()
            if new is None:
                going -= 1
            else:
                yield number, new
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
