"""Adapters of other programs, served by name beside each other: each answers what PEFT alone makes of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft_folders import plain, read_by_peft, write_adapter
from serving.server import MIB, Server
from serving.test_generation import SYSTEM, ask, said, user
from small_models import build_small
from transformers import PreTrainedTokenizerBase
from waiting import LONGEST

from mm_rec.data.conversations.conversation import ChatMessage
from mm_rec.data.conversations.rendering import chat_prompt_ids
from mm_rec.inference.generate import IncrementalDetokenizer
from mm_rec.inference.manager import open_model
from mm_rec.inference.scheduler import Scheduler
from mm_rec.inference.served_model import ServedModel
from mm_rec.models.loading import save_model

QV = ["q_proj", "v_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "saved": {"modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    "tokens": {"trainable_token_indices": list(range(40, 120))},
    "norms": {"modules_to_save": ["input_layernorm"]},
    "other": {"r": 6, "use_rslora": True},
}


def written_by(model: Any, tokenizer: PreTrainedTokenizerBase, stop_ids: set[int]) -> str:
    """The text that transformers and PEFT write in the conversation."""
    ids = torch.tensor(
        [
            chat_prompt_ids(
                tokenizer, [ChatMessage("system", SYSTEM["content"]), ChatMessage("user", "Hello!")]
            )
        ]
    )
    new = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False,
        eos_token_id=sorted(stop_ids) or None, pad_token_id=0,
    )[0, ids.shape[1] :].tolist()  # fmt: skip
    stream = IncrementalDetokenizer(tokenizer)
    text = [stream.push(token) for token in new if token not in stop_ids]
    return ("".join(text) + stream.finish()).rstrip("\n")


@pytest.mark.parametrize("kinds", [["lora", "dora", "saved", "other"], ["tokens", "norms", "lora"]])
def test_folders_of_peft_are_served_by_name_beside_each_other(
    kinds: list[str], chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    save_model(build_small("llama", vocabulary=len(chat_tokenizer)).float(), chat_tokenizer, base)
    for seed, name in enumerate(kinds):
        write_adapter(base, tmp_path / name, seed, target_modules=QV, **KINDS[name])
    folders = [str(tmp_path / name) for name in kinds]
    loaded = open_model(base, folders, "cpu", apply_adapters=False)
    model = ServedModel("base", loaded, Scheduler(), prefix_cache_bytes=MIB)
    assert not model.engine.fallback_reason
    stop_ids = set(model.stop_ids)
    texts = [written_by(plain(base), chat_tokenizer, stop_ids)]
    texts += [written_by(read_by_peft(base, tmp_path / name), chat_tokenizer, stop_ids) for name in kinds]
    assert len(set(texts)) == len(texts)
    names = ["base", *(f"base:{name}" for name in kinds)]
    running = Server([model], tmp_path)
    try:
        listed = httpx.get(f"{running.url}/v1/models", timeout=LONGEST).json()["data"]
        assert [row["id"] for row in listed][: len(names)] == names
        for _ in range(2):  # the second time from what was read before
            with ThreadPoolExecutor(len(names)) as pool:
                answers = list(
                    pool.map(lambda name: said(ask(running, name, [SYSTEM, user("Hello!")])), names)
                )
            assert answers == texts
    finally:
        running.stop()
