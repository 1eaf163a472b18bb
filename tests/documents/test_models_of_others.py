"""Document 002's way with the models of others: load, talk, train, talk with the adapter, serve.

The folders are as their makers publish them: shards in bfloat16, their own tokenizer, chat template and ends of text;
the weights are random.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI
from published_templates import wear
from serving.server import Server
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from typer.testing import CliRunner

from mm_rec.cli.main import app
from mm_rec.inference.manager import open_model
from mm_rec.inference.scheduler import Scheduler
from mm_rec.inference.served_model import ServedModel

WORDS = ("cat", "dog", "tree", "house", "river", "song", "bread", "snow", "boat", "lamp", "door", "star")
WINDOW = 16
SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048,
}  # fmt: skip
PLACE = {"type": "object", "properties": {"at": {"type": "string", "maxLength": 8}}, "required": ["at"]}
TOOL: Any = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": PLACE}}
LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 256, "rope_theta": 500_000.0,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A published kind of model: its chat template, whether the tokenizer puts bos before a text, further ends."""

    template: str
    config: Callable[..., PreTrainedConfig]
    adds_bos: bool
    ends: tuple[str, ...] = ()


FAMILIES = {
    "llama3.2": Family(
        "llama3.2", lambda **sizes: LlamaConfig(**sizes, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True), True,
        ("<|end_of_text|>", "<|eom_id|>"),
    ),
    "mistral": Family("mistral_nemo", lambda **sizes: MistralConfig(**sizes, sliding_window=WINDOW), True),
    "qwen3": Family("qwen3", lambda **sizes: Qwen3Config(**sizes, tie_word_embeddings=True), False, ("<|endoftext|>",)),
    "gemma3": Family(
        "gemma3",
        lambda **sizes: Gemma3TextConfig(
            **sizes, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"],
            query_pre_attn_scalar=16,
        ),
        True, ("<end_of_turn>",),
    ),
}  # fmt: skip


def example(number: int) -> str:
    chosen = [WORDS[(number * 5 + place) % len(WORDS)] for place in range(3)]
    words = "\n".join(f"{place}. {word}" for place, word in enumerate(chosen, 1))
    sentences = "\n".join(f"{place}. I see a {word}." for place, word in enumerate(chosen, 1))
    asked = f"Generate A1-level English sentences for these words:\n{words}"
    return f"### Instruction:\n{asked}\n\n### Response:\n{sentences}"


EXAMPLES = "\n\n\n".join(map(example, range(40)))


def byte_level_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """A byte-level BPE that cuts text as LLaMA 3's does, with the family's template, tokens and beginning."""
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    backend = Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words + r"|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [EXAMPLES], trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)
    published = wear(tokenizer, family.template)
    tokenizer.add_special_tokens({"extra_special_tokens": [*published.tokens, *family.ends]})
    if family.adds_bos:
        bos = (str(published.bos), tokenizer.convert_tokens_to_ids(published.bos))
        backend = tokenizer.backend_tokenizer
        backend.post_processor = TemplateProcessing(f"{bos[0]} $A", f"{bos[0]} $A $B", [bos])
    return tokenizer


def publish(name: str, folder: Path) -> Path:
    """Write a model folder of a family, in shards of bfloat16."""
    family = FAMILIES[name]
    tokenizer = byte_level_tokenizer(family)
    ends = tokenizer.convert_tokens_to_ids([str(tokenizer.eos_token), *family.ends])
    begin = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends}
    torch.manual_seed(0)
    config = family.config(**SIZES, vocab_size=len(tokenizer), **begin, initializer_range=0.1)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    with torch.no_grad():  # a tied head would else write the last token again and again
        model.get_input_embeddings().weight.mul_(0.2)
    model.generation_config = GenerationConfig(**begin, do_sample=True, temperature=0.6, top_p=0.9)
    model.save_pretrained(folder, max_shard_size="150KB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    """A family."""
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its published folder."""
    return publish(name, tmp_path_factory.mktemp("published") / name)


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the document on it."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "a1.txt").write_text(EXAMPLES, encoding="utf-8")
    run(
        "lora", folder / "a1.txt", "--from", model, "--runs", folder, "--name", "a1", "--rank", 8, "--steps", 8,
        "--batch-size", 2, "--accumulation", 1, "--chunk-length", 96, "--precision", "float32", "--learning-rate", 0.01,
    )  # fmt: skip
    return folder / "a1"


def run(*arguments: object, typed: str = "") -> str:
    """What a command prints; it must succeed."""
    result = CliRunner().invoke(app, [str(one) for one in arguments], input=typed, env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    return result.output


def test_load_and_talk(model: Path) -> None:
    greedy = ("--temperature", 0, "--max-new-tokens", 12)
    written = run("generate", model, "--prompt", "I see a", *greedy)
    tokenizer = AutoTokenizer.from_pretrained(model)
    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    inputs = tokenizer("I see a", return_tensors="pt")
    ids = theirs.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs.input_ids.shape[1] :]
    expected = tokenizer.decode(ids, skip_special_tokens=True)
    assert expected.strip() in written
    said = run("chat", model, *greedy, typed="I see a cat.\nAnd a dog?\n")
    assert "Traceback" not in said and said.strip()


def test_train_and_talk_with_the_adapter(model: Path, adapter: Path) -> None:
    log = json.loads((adapter / "training_log.json").read_text(encoding="utf-8"))
    assert log["base_model_name"] == str(model) and log["loss"] > 0
    prompt = EXAMPLES.partition("1. I see")[0]
    merged = adapter.parent / "merged"
    run("merge", model, "--adapter", adapter, "--out", merged)

    def written(*which: object) -> str:
        text = run("generate", *which, "--prompt", prompt, "--temperature", 0, "--max-new-tokens", 12)
        return text.partition(prompt)[2].rpartition("(")[0]  # without the speed

    adapted = written(model, "--adapter", adapter)
    assert adapted.strip() and adapted != written(model)
    assert written(merged) == adapted
    said = run(
        "chat", model, "--adapter", adapter, "--temperature", 0, "--max-new-tokens", 8, typed="I see a cat.\n"
    )
    assert said.strip()


def test_learn_from_conversations_with_its_own_template(model: Path, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"Say {word}."}, {"role": "assistant", "content": f"{word}!"}] * 2}
        for word in WORDS
    ]  # fmt: skip
    chats = tmp_path / "chats.jsonl"
    chats.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    seen = run("data", "masks", chats, "--tokenizer", model)
    assert "cat!" in seen
    run(
        "sft",
        chats,
        "--from",
        model,
        "--runs",
        tmp_path,
        "--name",
        "talk",
        "--steps",
        2,
        "--precision",
        "float32",
    )
    tuned = AutoTokenizer.from_pretrained(tmp_path / "talk" / "final")
    assert tuned.chat_template == AutoTokenizer.from_pretrained(model).chat_template


@pytest.fixture(scope="module")
def client(model: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """The official client of a server of the model and its adapter."""
    loaded = open_model(model, [str(adapter)], "cpu", apply_adapters=False)
    served = ServedModel("other", loaded, Scheduler(), prefix_cache_bytes=2**24)
    running = Server([served], tmp_path_factory.mktemp("server"))
    yield OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
    running.stop()


def test_serve(client: OpenAI, name: str, model: Path, adapter: Path) -> None:
    names = [one.id for one in client.models.list()]
    assert names[:2] == ["other", "other:a1"]
    asked: Any = [{"role": "user", "content": "I see a cat."}]
    answers = [
        client.chat.completions.create(model=one, messages=asked, temperature=0, max_tokens=12)
        .choices[0]
        .message.content
        for one in names[:2]
    ]
    assert answers[0] != answers[1]
    plain = (
        client.completions.create(model="other", prompt="I see a", temperature=0, max_tokens=12)
        .choices[0]
        .text
    )
    assert plain.strip() in run(
        "generate", model, "--prompt", "I see a", "--temperature", 0, "--max-new-tokens", 12
    )
    if name == "gemma3":  # its template knows no tools
        with pytest.raises(Exception, match="does not tell the model which tools there are"):
            client.chat.completions.create(model="other", messages=asked, tools=[TOOL])
        return
    called = client.chat.completions.create(
        model="other:a1", messages=asked, tools=[TOOL], tool_choice="required", max_tokens=120, seed=3
    ).choices[0]
    assert called.finish_reason == "tool_calls" and called.message.tool_calls
    functions = [one.function for one in called.message.tool_calls if one.type == "function"]
    assert functions and all(isinstance(json.loads(one.arguments)["at"], str) for one in functions)
