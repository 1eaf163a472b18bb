"""The special tokens of MM-Rec's own tokenizers, and the chat template that they carry."""

from __future__ import annotations

ENDOFTEXT = "<|endoftext|>"
PAD = "<|pad|>"
SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"

# SentencePiece requires it, at id 0; with byte fallback no text ever gives it, so it is no special token.
UNKNOWN = "<unk>"

# In the order of their ids, which follow that of UNKNOWN.
SPECIAL_TOKENS = (ENDOFTEXT, PAD, SYSTEM, USER, ASSISTANT)

# Pieces of their own, so that nothing merges across a line or a column. They are ordinary text, not specials.
SEPARATORS = ("\n", "\t")

# Written as expressions only: the white space between tags must never reach the text.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {%- if message['role'] not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception('unknown role ' ~ message['role'] ~ ': use system, user or assistant') -}}
    {%- endif -%}
    {%- if message['content'] is not string -%}
        {{- raise_exception('the content of a message from ' ~ message['role'] ~ ' is not text') -}}
    {%- endif -%}
    {{- '<|' ~ message['role'] ~ '|>\\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}
            {{- message['content'] ~ '\\n<|endoftext|>' -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- message['content'] ~ '\\n<|endoftext|>' -}}
    {%- endif -%}
    {{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>\\n' -}}
{%- endif -%}
"""
