"""A conversation on one engine session: each turn reads only what is new."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mm_rec.data.conversations.conversation import ChatMessage
from mm_rec.data.conversations.rendering import prompt_text, require_plain
from mm_rec.inference.engine import Engine
from mm_rec.inference.sampling import Sampling
from mm_rec.inference.text_stream import TextStream, encode, stop_ids
from mm_rec.runs.files import write_json
from mm_rec.tokenizers.chat_template import require_template


class ChatSession:
    """Messages, rendered by the tokenizer's chat template, and the session that has read them."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        system: str | None = None,
    ) -> None:
        require_template(tokenizer)
        self.engine, self.tokenizer, self.sampling = engine, tokenizer, sampling
        require_plain(tokenizer, [system or ""])
        self._opening = [] if system is None else [ChatMessage("system", system)]
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = list(self._opening)
        self.read_again()

    def read_again(self) -> None:
        """Read the conversation anew with the next message: what read it was another model, or had other adapters."""
        self.session = self.engine.session()
        self._read_text = ""

    def say(self, content: str) -> Generator[str]:
        """Read a message from the user and yield the reply as it comes.

        A reply that is not taken to its end is kept as far as it came. Raises UserError, and changes nothing, where
        the message holds a special token or the conversation would pass the model's context limit.
        """
        require_plain(self.tokenizer, [content])
        messages = [*self.messages, ChatMessage("user", content)]
        rendered = prompt_text(self.tokenizer, messages)
        session = self.session
        if session.length == 0 or not rendered.startswith(self._read_text):
            # A foreign template may rewrite earlier messages; then what was read is not what it says now.
            session = self.engine.session()
            session.feed(encode(self.tokenizer, rendered))
        else:
            session.feed(encode(self.tokenizer, rendered[len(self._read_text) :]))
        self.messages, self.session, self._read_text = messages, session, rendered
        return self._reply()

    def save(self, path: Path) -> None:
        """Write the messages to a JSON file."""
        write_json(path, {"messages": [message.to_template() for message in self.messages]})

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
        self.messages.append(ChatMessage("assistant", text.removesuffix("\n")))
