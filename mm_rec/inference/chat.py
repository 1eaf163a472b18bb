"""A conversation on one engine session: each turn reads only what is new."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from mm_rec.errors import TokenizerError
from mm_rec.inference.engine import Engine
from mm_rec.inference.sampling import Sampling
from mm_rec.inference.text_stream import TextStream, encode, prompt_ids, stop_ids
from mm_rec.runs.files import write_json

Message = dict[str, str]


class Conversation:
    """Messages, rendered by the tokenizer's chat template, and the session that has read them."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        system: str | None = None,
    ) -> None:
        if not tokenizer.chat_template:
            raise TokenizerError(
                "this model's tokenizer has no chat template, so it was not made for conversations. "
                "Use `mmrec generate`, or a model whose tokenizer was trained with `mmrec tokenizer train`"
            )
        self.engine, self.tokenizer, self.sampling = engine, tokenizer, sampling
        self._opening: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = list(self._opening)
        self.session = self.engine.session()
        self._read_text = ""

    def say(self, content: str) -> Generator[str]:
        """Read a message from the user and yield the reply as it comes.

        A reply that is not taken to its end is kept as far as it came. Raises UserError, and changes nothing,
        where the conversation would pass the model's context limit.
        """
        messages = [*self.messages, {"role": "user", "content": content}]
        rendered = self._render(messages)
        session = self.session
        if session.length == 0 or not rendered.startswith(self._read_text):
            # A foreign template may rewrite earlier messages; then what was read is not what it says now.
            session = self.engine.session()
            session.feed(prompt_ids(self.tokenizer, rendered))
        else:
            session.feed(encode(self.tokenizer, rendered[len(self._read_text) :]))
        self.messages, self.session, self._read_text = messages, session, rendered
        return self._reply()

    def save(self, path: Path) -> None:
        """Write the messages to a JSON file."""
        write_json(path, {"messages": self.messages})

    def _reply(self) -> Generator[str]:
        ids: list[int] = []
        stream = TextStream(self.tokenizer, self.sampling.stop)
        held = ""  # line ends: the last one closes the message and is not part of it
        try:
            for token in self.session.generate(self.sampling, stop_ids(self.tokenizer)):
                ids.append(token)
                text = held + stream.push(token)
                held = text[len(text.rstrip("\n")) :]
                if shown := text.rstrip("\n"):
                    yield shown
                if stream.stopped:
                    return
            if shown := (held + stream.finish()).rstrip("\n"):
                yield shown
        finally:
            self._keep_reply(ids)

    def _keep_reply(self, ids: list[int]) -> None:
        """Note a reply as the session has read it, special tokens too, so that the next turn continues there."""
        text = str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        self._read_text += text
        self.messages.append({"role": "assistant", "content": text.removesuffix("\n")})

    def _render(self, messages: list[Message]) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            )
        except TemplateError as error:
            raise TokenizerError(
                f"the tokenizer's chat template refuses this conversation: {error}"
            ) from error
