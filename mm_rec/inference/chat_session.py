"""A conversation on one engine session: each turn reads only what is new."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from transformers import PreTrainedTokenizerBase

from mm_rec.data.conversations.conversation import ChatMessage
from mm_rec.data.conversations.prompt_parts import continuation_text, turn_end_text
from mm_rec.data.conversations.rendering import prompt_text, reject_special_tokens
from mm_rec.errors import ConfigError, UserError
from mm_rec.inference.engine import Engine, Session
from mm_rec.inference.generate import encode_rendered, generate_deltas
from mm_rec.inference.sampler import SamplingParams
from mm_rec.inference.session_file import SessionFile
from mm_rec.tokenizers.assistant_format import assistant_format
from mm_rec.tokenizers.chat_template import known_chat_template, require_template


class ChatSession:
    """Messages, rendered by the tokenizer's chat template, and the session that has read them.

    With a `file` the session is kept there after every reply, and goes on from there: `restored_tokens` counts what was
    read before this start, and `messages` are those since then.
    """

    interruptible = False  # an exception within a step would leave half a state
    messages: list[ChatMessage]

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        sampling: SamplingParams,
        system: str | None = None,
        file: SessionFile | None = None,
    ) -> None:
        """Raises ConfigError where the conversation of the file began with another system message."""
        require_template(tokenizer)
        self.engine, self.tokenizer, self.sampling = engine, tokenizer, sampling
        reject_special_tokens(tokenizer, [system or ""])
        self._system, self._file = system, file
        # In our layouts a message reads the same wherever it stands; a foreign template may rewrite earlier ones.
        self._in_layout = known_chat_template(tokenizer) is not None
        self._begin()
        if file is not None and (kept := file.read()) is not None:
            self._resume(*kept, file)

    def reset(self) -> None:
        """Forget everything but the system message; raises DataError where the file cannot be removed."""
        if self._file is not None:
            self._file.delete()
        self._begin()

    def invalidate_state(self) -> None:
        """Read the messages anew with the next one: what read them was another model, or had other adapters."""
        self.session = self.engine.session()
        self._read_text = ""

    def send(self, content: str) -> Generator[str]:
        """Read a message from the user and yield the reply as it comes.

        A reply that is not taken to its end is kept as far as it came. Raises UserError, and changes nothing, where
        the message holds a special token or the conversation would pass the model's context limit.
        """
        reject_special_tokens(self.tokenizer, [content])
        messages = [*self.messages, ChatMessage("user", content)]
        session, text = self._pending_text(messages)
        ids = encode_rendered(self.tokenizer, text)
        try:
            self.engine.require_room(session.length + len(ids) + 1)
        except UserError as error:
            raise UserError(f"{error} (/reset forgets the conversation)") from error
        session.prefill(ids)
        self._read_text = self._read_text + text if session is self.session else text
        self.messages, self.session = messages, session
        return self._reply()

    def _begin(self) -> None:
        self.messages = [] if self._system is None else [ChatMessage("system", self._system)]
        self.restored_tokens = 0
        self.invalidate_state()

    def _resume(self, session: Session, system: str | None, file: SessionFile) -> None:
        if self._system not in (None, system):
            raise ConfigError(
                f"--system: the conversation in {file.path} began with "
                f"{'no system message' if system is None else f'another one ({system[:80]!r})'}. "
                "Leave --system out, or begin a new conversation with another --session FILE"
            )
        self._system = system
        self.session, self.restored_tokens = session, session.length
        self.messages = []

    def _pending_text(self, messages: Sequence[ChatMessage]) -> tuple[Session, str]:
        """The text of the messages that is still to be read, and the session that reads it."""
        if self._in_layout and self.session.length:
            return self.session, continuation_text(self.tokenizer, messages[-1:])
        rendered = prompt_text(self.tokenizer, messages)
        if self.session.length and rendered.startswith(self._read_text):
            return self.session, rendered[len(self._read_text) :]
        return self.engine.session(), rendered

    def _reply(self) -> Generator[str]:
        ids: list[int] = []
        held = ""  # line ends: the last one closes the message and is not part of it
        try:
            for delta in generate_deltas(self.session, self.tokenizer, self.sampling):
                if delta.token is not None:
                    ids.append(delta.token)
                text = held + delta.text
                held = text[len(text.rstrip("\n")) :]
                if shown := text.rstrip("\n"):
                    yield shown
        finally:
            self._keep_reply(ids)

    def _keep_reply(self, ids: list[int]) -> None:
        """Note a reply as the session has read it, special tokens too, so that the next turn continues there."""
        text = str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        form, said, thought = assistant_format(self.tokenizer), text, ""
        if form.reasoning is not None:  # the template decides what becomes of it
            thought, said = form.reasoning.split(text, form.opens_reasoning(self._read_text))
        self._read_text += text
        self.messages.append(ChatMessage("assistant", said.removesuffix("\n"), reasoning=thought))
        if self._in_layout:
            self.session.append(encode_rendered(self.tokenizer, turn_end_text(self.tokenizer, text)))
        if self._file is not None:
            self._file.write(self.session, self._system)
