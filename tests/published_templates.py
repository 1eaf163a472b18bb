"""Chat templates of published families (tests/templates), written down from their documentation, and how they read.

`text` is how one short conversation reads, and in ⟦ ⟧ what of it the assistant writes: by hand, not by rendering.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Published:
    """The special tokens of a template, bos and eos, and the conversation of TALK as it reads."""

    text: str
    tokens: tuple[str, ...] = ()
    bos: str | None = None
    eos: str | None = None
    system: bool = True  # whether it takes a system message
    calls: str = ""  # CALLS as the assistant writes them, up to its end; of one call alone where it takes one
    thought: tuple[str, str] | None = None  # what stands around reasoning


CALLS = (("hava", {"şehir": "Muş", "gün": 2}), ("saat", {}))
_CALL = '{"name": "hava", "arguments": {"şehir": "Muş", "gün": 2}}'
_TAGGED = (
    f'<tool_call>\n{_CALL}\n</tool_call>\n<tool_call>\n{{"name": "saat", "arguments": {{}}}}\n</tool_call>'
)
IDS = ("abcDEF123", "abcDEF124")
TALK = (("user", "Hava?"), ("assistant", "Soğuk."), ("user", "Old?"), ("assistant", "No."))

PUBLISHED: dict[str, Published] = {
    "chatml": Published(
        "<|im_start|>user\nHava?<|im_end|>\n<|im_start|>assistant\n⟦Soğuk.<|im_end|>⟧\n"
        "<|im_start|>user\nOld?<|im_end|>\n<|im_start|>assistant\n⟦No.<|im_end|>⟧\n",
        tokens=("<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
    ),
    "qwen2.5": Published(
        "<|im_start|>system\n"
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHava?<|im_end|>\n<|im_start|>assistant\n⟦Soğuk.<|im_end|>⟧\n"
        "<|im_start|>user\nOld?<|im_end|>\n<|im_start|>assistant\n⟦No.<|im_end|>⟧\n",
        tokens=("<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        calls=_TAGGED,
    ),
    "qwen3": Published(
        "<|im_start|>user\nHava?<|im_end|>\n<|im_start|>assistant\nSoğuk.<|im_end|>\n"
        "<|im_start|>user\nOld?<|im_end|>\n<|im_start|>assistant\n⟦<think>\n\n</think>\n\n"
        "No.<|im_end|>⟧\n",
        tokens=("<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        calls=_TAGGED,
        thought=("<think>\n", "\n</think>\n\n"),
    ),
    "smollm": Published(
        "<|im_start|>user\nHava?<|im_end|>\n<|im_start|>assistant\n⟦Soğuk.<|im_end|>⟧\n"
        "<|im_start|>user\nOld?<|im_end|>\n<|im_start|>assistant\n⟦No.<|im_end|>⟧\n",
        tokens=("<|im_start|>", "<|im_end|>"),
        bos="<|im_start|>",
        eos="<|im_end|>",
    ),
    "llama2": Published(
        "<s>[INST] Hava? [/INST]⟦ Soğuk. </s>⟧<s>[INST] Old? [/INST]⟦ No. </s>⟧",
        bos="<s>",
        eos="</s>",
    ),
    "llama3.2": Published(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n"
        "Hava?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦Soğuk.<|eot_id|>⟧"
        "<|start_header_id|>user<|end_header_id|>\n\n"
        "Old?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦No.<|eot_id|>⟧",
        tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        calls='{"name": "hava", "parameters": {"şehir": "Muş", "gün": 2}}',
    ),
    "llama_pythonic": Published(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "You are a helpful assistant with tool calling capabilities.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n"
        "Hava?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦Soğuk.<|eot_id|>⟧"
        "<|start_header_id|>user<|end_header_id|>\n\n"
        "Old?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦No.<|eot_id|>⟧",
        tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        calls='[hava(şehir="Muş", gün=2), saat()]',
    ),
    "llama3": Published(
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
        "Hava?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦Soğuk.<|eot_id|>⟧"
        "<|start_header_id|>user<|end_header_id|>\n\n"
        "Old?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦No.<|eot_id|>⟧",
        tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
    ),
    "mistral": Published(
        "<s>[INST] Hava? [/INST]⟦Soğuk.</s>⟧[INST] Old? [/INST]⟦No.</s>⟧",
        tokens=("[INST]", "[/INST]"),
        bos="<s>",
        eos="</s>",
        system=False,
    ),
    "mistral_nemo": Published(
        "<s>[INST]Hava?[/INST]⟦Soğuk.</s>⟧[INST]Old?[/INST]⟦No.</s>⟧",
        tokens=(
            "[INST]",
            "[/INST]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_CALLS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ),
        bos="<s>",
        eos="</s>",
        calls='[TOOL_CALLS][{"name": "hava", "arguments": {"şehir": "Muş", "gün": 2}, "id": "abcDEF123"}, '
        '{"name": "saat", "arguments": {}, "id": "abcDEF124"}]',
    ),
    "mixtral": Published(
        "<s>[INST] Hava? [/INST]⟦ Soğuk.</s>⟧ [INST] Old? [/INST]⟦ No.</s>⟧ ",
        bos="<s>",
        eos="</s>",
        system=False,
    ),
    "gemma": Published(
        "<bos><start_of_turn>user\nHava?<end_of_turn>\n<start_of_turn>model\n"
        "⟦Soğuk.<end_of_turn>⟧\n<start_of_turn>user\nOld?<end_of_turn>\n"
        "<start_of_turn>model\n⟦No.<end_of_turn>⟧\n",
        tokens=("<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        system=False,
    ),
    "gemma3": Published(
        "<bos><start_of_turn>user\nHava?<end_of_turn>\n<start_of_turn>model\n"
        "⟦Soğuk.<end_of_turn>⟧\n<start_of_turn>user\nOld?<end_of_turn>\n"
        "<start_of_turn>model\n⟦No.<end_of_turn>⟧\n",
        tokens=("<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
    ),
    "phi3": Published(
        "<|user|>\nHava?<|end|>\n<|assistant|>\n⟦Soğuk.<|end|>⟧\n<|user|>\nOld?<|end|>\n"
        "<|assistant|>\n⟦No.<|end|>⟧\n<|endoftext|>",
        tokens=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        eos="<|endoftext|>",
    ),
    "phi4": Published(
        "<|im_start|>user<|im_sep|>Hava?<|im_end|><|im_start|>assistant<|im_sep|>⟦Soğuk.<|im_end|>⟧"
        "<|im_start|>user<|im_sep|>Old?<|im_end|><|im_start|>assistant<|im_sep|>⟦No.<|im_end|>⟧",
        tokens=("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
        eos="<|im_end|>",
    ),
    "deepseek": Published(
        "<｜begin▁of▁sentence｜>User: Hava?\n\nAssistant:⟦ Soğuk.<｜end▁of▁sentence｜>⟧"
        "User: Old?\n\nAssistant:⟦ No.<｜end▁of▁sentence｜>⟧",
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
    ),
    "deepseek_r1": Published(
        "<｜begin▁of▁sentence｜><｜User｜>Hava?<｜Assistant｜>⟦Soğuk.<｜end▁of▁sentence｜>⟧"
        "<｜User｜>Old?<｜Assistant｜>⟦No.<｜end▁of▁sentence｜>⟧",
        tokens=(
            "<｜User｜>",
            "<｜Assistant｜>",
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁call▁begin｜>",
            "<｜tool▁sep｜>",
            "<｜tool▁call▁end｜>",
            "<｜tool▁calls▁end｜>",
            "<｜tool▁outputs▁begin｜>",
            "<｜tool▁output▁begin｜>",
            "<｜tool▁output▁end｜>",
            "<｜tool▁outputs▁end｜>",
        ),
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        calls="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>hava\n```json\n"
        '{"şehir": "Muş", "gün": 2}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>saat\n'
        "```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        thought=("<think>", "</think>"),
    ),
    "olmo3": Published(
        "<|im_start|>system\nYou are a helpful function-calling AI assistant.\n"
        "You do not currently have access to any functions.<|im_end|>\n"
        "<|im_start|>user\nHava?<|im_end|>\n<|im_start|>assistant\n⟦Soğuk.<|im_end|>⟧\n"
        "<|im_start|>user\nOld?<|im_end|>\n<|im_start|>assistant\n⟦No.<|im_end|>⟧\n",
        tokens=("<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        calls="<function_calls>\nhava(şehir='Muş', gün=2)\nsaat()\n</function_calls>",
    ),
    "granite4": Published(
        "<|start_of_role|>user<|end_of_role|>Hava?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>⟦Soğuk.<|end_of_text|>⟧\n"
        "<|start_of_role|>user<|end_of_role|>Old?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>⟦No.<|end_of_text|>⟧\n",
        tokens=("<|start_of_role|>", "<|end_of_role|>"),
        eos="<|end_of_text|>",
        calls=_TAGGED,
    ),
    "granite": Published(
        "<|start_of_role|>user<|end_of_role|>Hava?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>⟦Soğuk.<|end_of_text|>⟧\n"
        "<|start_of_role|>user<|end_of_role|>Old?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>⟦No.<|end_of_text|>⟧\n",
        tokens=("<|start_of_role|>", "<|end_of_role|>"),
        eos="<|end_of_text|>",
    ),
}


CALLING = tuple(name for name, one in PUBLISHED.items() if one.calls)
REASONING = tuple(name for name, one in PUBLISHED.items() if one.thought)


def wear(tokenizer: PreTrainedTokenizerBase, name: str) -> Published:
    """Give a tokenizer a published template, with the tokens that it needs."""
    one = PUBLISHED[name]
    ends = {"bos_token": one.bos, "eos_token": one.eos}
    tokenizer.add_special_tokens(
        {"extra_special_tokens": list(one.tokens), **{kind: token for kind, token in ends.items() if token}}
    )
    tokenizer.chat_template = (Path(__file__).parent / "templates" / f"{name}.jinja").read_text(
        encoding="utf-8"
    )
    return one
