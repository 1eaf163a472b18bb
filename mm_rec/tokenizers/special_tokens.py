"""The special tokens of MM-Rec's own tokenizers."""

from __future__ import annotations

ENDOFTEXT = "<|endoftext|>"
PAD = "<|pad|>"
SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
DEVELOPER = "<|developer|>"
TOOLS = "<|tools|>"
TOOL_CALL = "<|tool_call|>"
TOOL = "<|tool|>"

# Of the default chat layout: the roles, the definitions of tools, and what begins a call.
CHAT_TOKENS = (SYSTEM, USER, ASSISTANT, DEVELOPER, TOOLS, TOOL_CALL, TOOL)

# SentencePiece requires it, at id 0; with byte fallback no text ever gives it, so it is no special token.
UNKNOWN = "<unk>"

# In the order of their ids, which follow that of UNKNOWN.
SPECIAL_TOKENS = (ENDOFTEXT, PAD, *CHAT_TOKENS)

# Pieces of their own, so that nothing merges across a line or a column. They are ordinary text, not specials.
SEPARATORS = ("\n", "\t")
