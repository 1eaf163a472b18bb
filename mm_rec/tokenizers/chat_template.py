"""Chat templates: Jinja with generation markers, and the special tokens that each needs.

The template is kept in the tokenizer; training, chat, the mask viewer and every export render by it and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mm_rec.errors import ConfigError, TokenizerError
from mm_rec.tokenizers.special_tokens import CHAT_TOKENS, ENDOFTEXT, PAD

_TEMPLATES = Path(__file__).parent / "templates"
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template: its special tokens, and the one that ends a turn (None: the tokenizer's eos)."""

    name: str
    special_tokens: tuple[str, ...]
    eot_token: str | None

    @property
    def template(self) -> str:
        """Return the Jinja source."""
        return _read_template(self.name)


@cache
def _read_template(name: str) -> str:
    return (_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")


TEMPLATES = {
    layout.name: layout
    for layout in (
        ChatTemplate("default", CHAT_TOKENS, None),
        ChatTemplate("chatml", ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
        ChatTemplate("llama3", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"),
    )
}


def find_chat_template(name: str) -> ChatTemplate:
    """Return the chat template of that name; raises ConfigError listing the names."""
    if name not in TEMPLATES:
        raise ConfigError(f"there is no chat layout {name!r}; choose one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def prepare_for_chat(tokenizer: PreTrainedTokenizerBase, layout: str = "default") -> list[str]:
    """Give a tokenizer a chat template and the special tokens that it lacks. Returns the tokens added.

    The token that ends a turn becomes the eos, which generation stops at; padding is never the eos, or every end
    would be ignored in training.
    """
    chosen = find_chat_template(layout)
    known = tokenizer.get_vocab()
    eos = chosen.eot_token or tokenizer.eos_token or ENDOFTEXT
    pad = _pad_token(tokenizer) if tokenizer.pad_token in (None, eos) else tokenizer.pad_token
    wanted = [*chosen.special_tokens, eos, pad]
    extra = [token for token in tokenizer.extra_special_tokens if token not in wanted]
    tokenizer.add_special_tokens(
        {"eos_token": eos, "pad_token": pad, "extra_special_tokens": [*extra, *chosen.special_tokens]}
    )
    tokenizer.chat_template = chosen.template
    return [token for token in dict.fromkeys(wanted) if token not in known]


def require_pad_token(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Give a tokenizer that pads with its eos, or with nothing, a padding token. Returns the tokens added."""
    if tokenizer.pad_token not in (None, tokenizer.eos_token):
        return []
    pad = _pad_token(tokenizer)
    known = pad in tokenizer.get_vocab()
    tokenizer.add_special_tokens({"pad_token": pad})
    return [] if known else [pad]


def _pad_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a token for padding that a tokenizer has unused, so that the model needs no further row; or else ours.

    LLaMA 3 has <|finetune_right_pad_id|>, LLaMA 2 an <unk> that its byte fallback leaves unused.
    """
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    known = [PAD] if PAD in tokenizer.get_vocab() else []
    spare = [token for token in special if "pad" in token.lower() or token == tokenizer.unk_token]
    return [*known, *spare, PAD][0]


def known_chat_template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | None:
    """Return which of TEMPLATES a tokenizer carries; None for a template of its own."""
    return next((one for one in TEMPLATES.values() if one.template == tokenizer.chat_template), None)


def require_template(tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the tokenizer's template, of several the one for tools or for none; raises TokenizerError without one."""
    if tokenizer.chat_template:
        try:
            template: str = tokenizer.get_chat_template(tools=[dict(tool) for tool in tools] or None)
            return template
        except ValueError as error:
            raise TokenizerError(f"this tokenizer's chat template cannot be used ({error})") from error
    raise TokenizerError(
        "this tokenizer has no chat template, so it was not made for conversations. Give it a layout "
        f"(--template {', '.join(TEMPLATES)}) when you fine-tune the model"
    )


def has_generation_markers(template: str) -> bool:
    """Return whether a template marks what the assistant writes ({% generation %}); published ones hardly do."""
    return _GENERATION.search(template) is not None
