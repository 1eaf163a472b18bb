"""Adapters from end to end: what a run learns, leaves and continues; how it is used, merged and refused."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stage_recipes import adapting
from transformers import PreTrainedTokenizerBase
from waiting import LONGEST

from mm_rec.cli.main import run as command
from mm_rec.data.prompt_lines import common_lines, prompt_mismatch_warning
from mm_rec.errors import CheckpointError, ConfigError, DataError
from mm_rec.models.adapters import Adapters
from mm_rec.models.forward import document_lengths, hidden_states
from mm_rec.models.loading import load_model, load_model_and_tokenizer, load_with_adapters, save_model
from mm_rec.models.presets import build, preset
from mm_rec.pipeline.examples import read_examples
from mm_rec.pipeline.finetune_data import masked_text
from mm_rec.pipeline.foreign_settings import NAMES, names_table, read_parameters, translate
from mm_rec.pipeline.recipe import Recipe, read_run, recipe_of
from mm_rec.pipeline.run import run_recipe, run_stage
from mm_rec.pipeline.sections import LoraSection
from mm_rec.runs.metrics_log import read_metrics
from mm_rec.tokenizers.loading import load_tokenizer
from mm_rec.tokenizers.training import TokenizerConfig, train_tokenizer
from mm_rec.training.objectives import next_token, with_embedding_noise

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["cat", "dog", "tree", "house", "river", "song", "bread", "snow", "boat", "lamp", "door", "star"]
FAST = {
    "rank": 4,
    "steps": 6,
    "batch_size": 2,
    "accumulation": 1,
    "precision": "float32",
    "validate_every": 3,
}


def example(number: int) -> str:
    chosen = [WORDS[(number * 5 + place) % len(WORDS)] for place in range(3)]
    words = "\n".join(f"{place}. {word}" for place, word in enumerate(chosen, 1))
    sentences = "\n".join(f"{place}. I see a {word}." for place, word in enumerate(chosen, 1))
    return f"### Instruction:\nWrite sentences for these words:\n{words}\n\n### Response:\n{sentences}"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n\n\n".join(map(example, range(60))), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [
        {"instruction": f"Say {word} {number}.", "output": f"{word}!"}
        for number in range(5)
        for word in WORDS
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A small LLaMA with a tokenizer of its text."""
    folder = tmp_path_factory.mktemp("base") / "llama"
    train_tokenizer(
        lambda: [text.read_text(encoding="utf-8")],
        TokenizerConfig(vocab_size=400, threads=1),
        folder.parent / "tok",
    )
    tokenizer = load_tokenizer(folder.parent / "tok")
    shape = {"num_hidden_layers": 2, "eos_token_id": tokenizer.eos_token_id, "max_position_embeddings": 512}
    save_model(build(preset("llama_tiny").config(len(tokenizer), **shape), seed=0), tokenizer, folder)
    return folder


@pytest.fixture
def tokenizer(base: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(base)


def recipe(base: Path | str, *data: Any, **changes: Any) -> Recipe:
    sources = [one if isinstance(one, dict) else {"path": str(one), "name": "text"} for one in data]
    return adapting({"start_from": str(base), "data": sources, **FAST, **changes})


def bits(folder: Path) -> dict[str, bytes]:
    return {
        name: tensor.numpy().tobytes()
        for name, tensor in load_file(folder / "adapter_model.safetensors").items()
    }


def test_a_run_leaves_the_adapter_and_all_that_the_document_lists(
    base: Path, text: Path, listener: Any, tmp_path: Path
) -> None:
    before = (base / "model.safetensors").read_bytes()
    run = tmp_path / "llama-a1"
    outcome = run_stage(
        recipe(base, text, save_below_loss=50.0, save_loss_step=0.01, learning_rate=5e-3), run, listener
    )
    assert (outcome.outcome, outcome.step) == ("finished", 6)
    for name in (
        "adapter_config.json", "adapter_model.safetensors", "training_log.json", "training_graph.png",
        "training_graph.json", "training_parameters.json", "README.md", "base.json", "training_prompt.json",
        "best/adapter_model.safetensors", "recipe.yaml", "lineage.json", "metrics.jsonl", "samples.jsonl",
    ):  # fmt: skip
        assert (run / name).is_file(), name
    assert (base / "model.safetensors").read_bytes() == before and not (run / "final").exists()
    assert not list(run.rglob("model.safetensors"))  # nowhere a copy of the base
    saved = sorted(run.glob("checkpoint-*-loss-*"))
    assert saved and all((one / "adapter_model.safetensors").is_file() for one in saved)
    log = json.loads((run / "training_log.json").read_text())
    train = [record["loss"] for record in read_metrics(run / "metrics.jsonl") if record["kind"] == "train"]
    assert log["base_model_name"] == str(base) and log["base_model_class"] == "LlamaForCausalLM"
    assert log["loss"] == train[-1] and log["train_loss"] == pytest.approx(sum(train) / len(train), abs=1e-5)
    assert log["total_steps"] == 6 and log["epoch"] == pytest.approx(12 / 50, abs=0.03)  # a block a row
    assert min(log[f"train_{name}"] for name in ("runtime", "samples_per_second", "steps_per_second")) > 0
    card = (run / "README.md").read_text()
    assert "library_name: peft" in card and f"base_model: {base}" in card and "Rank 4, alpha 8" in card
    assert "4,096 parameters are trained, in an adapter" in listener.text


@pytest.mark.parametrize("changes", [{}, {"init": "pissa"}, {"neftune_alpha": 5.0}, {"train_head": True}])
def test_a_run_that_is_stopped_and_resumed_ends_bit_for_bit_as_one_that_was_not(
    base: Path, text: Path, listener: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    given = recipe(base, text, checkpoint_every=1, **changes)
    run_stage(given, tmp_path / "whole", listener)

    def stop(moment: str, step: int) -> None:
        if (moment, step) == ("micro", 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(given, tmp_path / "broken", listener, on_event=stop)
    again = run_stage(read_run(tmp_path / "broken"), tmp_path / "broken", listener)
    assert again.outcome == "finished" and f"continuing {tmp_path / 'broken'} at step 4" in listener.text
    assert bits(tmp_path / "broken") == bits(tmp_path / "whole")
    losses = [
        [
            one["loss"]
            for one in read_metrics(tmp_path / name / "metrics.jsonl")
            if one["kind"] == "validation"
        ]
        for name in ("whole", "broken")
    ]
    assert losses[0] == losses[1]


def test_base_and_adapter_reloaded_and_merged_agree_on_real_text(
    base: Path, text: Path, listener: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_stage(recipe(base, text, learning_rate=5e-3), run, listener)
    model, tokenizer = load_with_adapters(base, [str(run)])
    ids = torch.tensor([tokenizer.encode(example(70))])
    with torch.no_grad():
        wanted, plain = model(input_ids=ids).logits, load_model(base)(input_ids=ids).logits
    assert float((wanted - plain).abs().max() / plain.abs().max()) > 0.01
    assert command(["merge", str(base), "--adapter", str(run), "--out", str(tmp_path / "merged")]) == 0
    with torch.no_grad():
        merged = load_model(tmp_path / "merged")(input_ids=ids).logits
    assert float((merged - wanted).abs().max() / wanted.abs().max()) < 1e-5
    assert json.loads((tmp_path / "merged" / "merged.json").read_text())["difference"] < 1e-5


def test_text_rows_and_conversations_are_learnt_together_and_only_what_should_be(
    base: Path, text: Path, rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, listener: Any
) -> None:
    chats = tmp_path / "chats.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": f"Say {word}."}, {"role": "assistant", "content": word}]}
        for word in WORDS
    ]
    chats.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    config = load_model(base).config

    def read(*sources: tuple[Path, str], **changes: Any) -> dict[str, str]:
        data = [{"path": str(path), "name": name} for path, name in sources]
        section = LoraSection(start_from=str(base), data=data, **changes)
        examples = read_examples(section, tokenizer, config, listener)
        assert examples.held_out and examples.questions
        return {name: masked_text(tokenizer, rendered[0]) for name, rendered in examples.train.items()}

    from mm_rec.tokenizers.chat_template import prepare_for_chat

    prepare_for_chat(tokenizer)
    both = read((text, "text"), (chats, "chats"))
    assert both["text"].startswith("<|endoftext|>⟦### Instruction:") and both["text"].endswith(
        "<|endoftext|>⟧"
    )
    assert "<|assistant|>\n⟦" in both["chats"] and "⟦<|user|>" not in both["chats"]
    after = read((text, "text"), text_slices={"train_only_after": "### Response:"})
    assert "### Response:⟦\n1. I see" in after["text"] or "### Response:\n⟦1. I see" in after["text"]
    rowed = read((rows, "rows"), (text, "text"), prompt_format="instruction")
    assert "### Response:\n⟦" in rowed["rows"] and "⟦###" not in rowed["rows"]


def test_no_part_of_a_text_is_both_learnt_and_held_out(
    base: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, listener: Any
) -> None:
    long = tmp_path / "long.txt"
    sentences = [f"The {a} sees the {b} by the {c}." for a in WORDS for b in WORDS[:6] for c in WORDS[:4]]
    long.write_text("\n\n".join(" ".join(sentences[i : i + 12]) for i in range(0, len(sentences), 12)))
    section = LoraSection(
        start_from=str(base), data=[{"path": str(long), "name": "text"}], text_slices={"chunk_length": 64}
    )
    examples = read_examples(section, tokenizer, load_model(base).config, listener)
    learnt = {
        line.strip() for one in examples.train["text"] for line in one.text.replace(". ", ".\n").splitlines()
    }
    held = {line.strip() for one in examples.held_out for line in one.text.replace(". ", ".\n").splitlines()}
    assert held and learnt and not held & learnt
    one = tmp_path / "one.txt"
    one.write_text("Only this.")
    single = section.replace(data=[{"path": str(one), "name": "text"}])
    with pytest.raises(DataError, match="10 characters, too few to hold out any"):
        read_examples(single, tokenizer, load_model(base).config, listener)


def test_neftune_noise_is_of_the_size_that_the_paper_gives_and_none_in_evaluation(base: Path) -> None:
    model = load_model(base)
    documents = torch.tensor([[0] * 6 + [1] * 2, [0] * 8])
    assert document_lengths(documents).tolist() == [[6] * 6 + [2] * 2, [8] * 8]
    assert document_lengths(torch.tensor([[3, 3], [3, -1]])).tolist() == [[2, 2], [1, 1]]
    batch = {
        "input_ids": torch.arange(16).view(2, 8),
        "document_ids": documents,
        "labels": torch.arange(16).view(2, 8),
    }
    seen: list[torch.Tensor] = []
    first = model.base_model.layers[0]
    hook = first.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0]), with_kwargs=True
    )
    with torch.no_grad():
        hidden_states(model, batch)
        for _ in range(200):
            with_embedding_noise(next_token(torch.float32), 5.0)(model, batch)
    hook.remove()
    noise = (torch.stack(seen[1:]) - seen[0]).abs()
    width = model.config.hidden_size
    for row, place, length in ((0, 0, 6), (0, 7, 2), (1, 3, 8)):
        most = 5.0 / np.sqrt(length * width)
        assert noise[:, row, place].max() <= most * (1 + 1e-5)
        assert float(noise[:, row, place].mean()) == pytest.approx(most / 2, rel=0.02)
    hidden_states(model, batch)
    assert torch.equal(seen[0], hidden_and_first(model, batch))  # the hook is gone


def hidden_and_first(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    first = model.base_model.layers[0]
    hook = first.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0]), with_kwargs=True
    )
    hidden_states(model, batch)
    hook.remove()
    return seen[0]


def test_an_adapter_on_a_base_without_the_chat_tokens_trains_their_rows_too(
    tmp_path: Path, rows: Path, listener: Any
) -> None:
    folder = tmp_path / "tok"
    train_tokenizer(lambda: WORDS * 40, TokenizerConfig(vocab_size=300, threads=1), folder)
    own = load_tokenizer(folder)
    model = build(preset("llama_tiny").config(len(own), num_hidden_layers=1), seed=0)
    save_model(model, own, tmp_path / "base")
    outcome = run_stage(recipe(tmp_path / "base", rows, template="chatml"), tmp_path / "run", listener)
    assert outcome.outcome == "finished" and "embedding and head are trained too" in listener.text
    found, tokenizer = load_with_adapters(tmp_path / "base", [str(tmp_path / "run")])
    assert "<|im_start|>" in tokenizer.get_vocab()
    assert found.get_input_embeddings().weight.shape[0] == len(tokenizer) > len(own)
    assert load_model_and_tokenizer(tmp_path / "base")[0].config.vocab_size == len(own)


def test_names_of_other_tools_are_understood_with_a_note_and_all_are_in_the_documentation() -> None:
    said: list[str] = []
    values = {
        "evaluation_strategy": "steps", "lora_rank": 64, "training_projection": "q-k-v", "optim": "adamw_torch",
        "per_device_train_batch_size": 3, "save_steps": 0, "lora_RS": True, "learning_rate": 1e-4, "no_such": 1,
        "optimizer": "paged_adamw_8bit", "hard_cut_string": "\\n\\n",
    }  # fmt: skip
    assert translate(values, said.append) == {
        "adapter": {"rank": 64, "targets": "q+k+v", "rslora": True}, "optimizer": "adamw", "batch_size": 3,
        "save_every": None, "learning_rate": 1e-4, "no_such": 1, "text_slices": {"hard_cut": "\\n\\n"},
    }  # fmt: skip
    both = translate({"adapter": {"dropout": 0.1, "rank": 8}, "rank": 4, "lora_alpha": 32}, said.append)
    assert both == {"adapter": {"rank": 8, "alpha": 32, "dropout": 0.1}}, "what is said by our names wins"
    assert "evaluation_strategy has no use here: validation is measured every validate_every steps" in said
    assert "lora_rank is called lora.adapter.rank here: 64" in said
    for name in NAMES:
        head, _, rest = name.ours.partition(".")
        assert not head or head in LoraSection.model_fields, name
        assert not rest or rest in type(getattr(LoraSection(), head)).model_fields, name
        assert name.ours or name.note
    assert names_table() in (ROOT / "docs" / "lora.md").read_text(encoding="utf-8")


def test_training_pros_parameters_are_read_with_its_batches_counted_as_steps(tmp_path: Path) -> None:
    given = {
        "lora_name": "llama1b-a1", "lora_rank": 128, "lora_alpha": 256, "lora_dropout": 0.05, "micro_batch_size": 16,
        "grad_accumulation": 4, "batch_size": 0, "epochs": "3", "learning_rate": "2e-4", "lr_scheduler_type": "cosine",
        "warmup_steps": 100, "save_steps": 0, "save_steps_under_loss": 1.8, "training_projection": "q-v",
        "cutoff_len": 256, "precize_slicing_overlap": True, "hard_cut_string": "\\n\\n\\n", "add_bos_token": True,
        "add_eos_token": True, "add_eos_token_type": "Every Block", "optimizer": "adamw_torch", "stop_at_loss": 0,
        "raw_text_file": "training_data_a1_list_format", "format": "None", "neft_noise_alpha": 0, "lora_RS": False,
    }  # fmt: skip
    (tmp_path / "training_parameters.json").write_text(json.dumps(given))
    section = LoraSection.read(read_parameters(tmp_path, lambda line: None))
    adapter = {"rank": 128, "alpha": 256, "dropout": 0.05, "targets": "q+v"}
    document = LoraSection(
        adapter=adapter, epochs=3, learning_rate=2e-4, warmup_steps=25, batch_size=16,
        accumulation=4, save_below_loss=1.8,
    )  # fmt: skip
    assert section == document
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(ConfigError, match="no parameters of an adapter"):
        read_parameters(tmp_path / "other.json", lambda line: None)


def test_the_command_trains_checks_copies_parameters_and_goes_on(
    base: Path,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [
        "--from",
        str(base),
        "--rank",
        "4",
        "--steps",
        "3",
        "--batch-size",
        "2",
        "--precision",
        "float32",
    ]
    assert command(["lora", str(text), *options, "--check"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "the longest have" in shown and "steps an epoch" in shown and "seconds a step, measured" in shown
    assert "suggested: --warmup-steps" in shown and "⟦### Instruction:" in shown and not Path("runs").exists()
    assert (
        command(["lora", str(text), *options, "--name", "one", "--set", "lora.evaluation_strategy=steps"])
        == 0
    )
    assert "evaluation_strategy has no use here" in " ".join(capsys.readouterr().out.split())
    assert (
        command(
            ["lora", str(text), "--from", str(base), "--like", "runs/one", "--steps", "1", "--name", "two"]
        )
        == 0
    )
    assert read_run(Path("runs/two")).stages[0].section.adapter.rank == 4
    assert command(["lora", "--resume", "runs/one", "--rank", "8"]) == 2
    assert "--resume goes on with the run's own settings, and would ignore --rank" in " ".join(
        capsys.readouterr().err.split()
    )
    assert command(["lora", "--resume", "runs/one"]) == 0
    more = ["--start-adapter", "runs/one", "--name", "three"]
    assert command(["lora", str(text), *options, *more]) == 0
    assert (
        command(["lora", str(text), *options, "--rank", "8", "--start-adapter", "runs/one", "--name", "four"])
        == 2
    )
    assert "has rank 4, and 8 was asked for" in " ".join(capsys.readouterr().err.split())
    assert not Path("runs/four").exists()


def test_generating_with_an_adapter_warns_of_a_prompt_in_another_format(
    base: Path, text: Path, listener: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run_stage(recipe(base, text, steps=1), run, listener)
    options = ["generate", str(base), "--adapter", str(run), "--max-new-tokens", "2", "--prompt"]
    assert command([*options, example(3).split("1. I see")[0]]) == 0
    assert "written otherwise" not in capsys.readouterr().err
    assert command([*options, "1. cat"]) == 0
    warned = capsys.readouterr().err
    assert (
        "lacks '### Instruction:'" in warned
        and "--- trained on:" in warned
        and "--- given:\n1. cat" in warned
    )
    assert prompt_mismatch_warning(run / "best", "### Instruction:") is not None
    assert common_lines(["a\nb\nc", "a\nx\nc", "a\ny\nc"]) == ["a", "c"]


def test_a_recipe_of_two_stages_ends_in_an_adapter_of_the_first(
    text: Path, listener: Any, tmp_path: Path
) -> None:
    first = {
        "kind": "pretrain",
        "data": {"sources": [str(text)], "documents": "blank-line"},
        "tokenizer": {"vocab_size": 300},
        "model": {"size": "tiny", "changes": {"num_hidden_layers": 2, "hidden_size": 64}},
        "steps": 3, "seq_len": 32, "batch_size": 4, "precision": "float32",
    }  # fmt: skip
    second = {"data": [{"path": str(text), "name": "text"}], **FAST, "text_share": 0.3, "seq_len": 256}
    adapting_stage = adapting(second).stages[0].values()
    given = recipe_of({"stages": [first, adapting_stage]})
    outcome = run_recipe(given, tmp_path / "run", listener)
    assert outcome.run == tmp_path / "run" / "lora" and (outcome.run / "adapter_model.safetensors").is_file()
    assert json.loads((outcome.run / "base.json").read_text())["name"] == str(tmp_path / "run" / "pretrain")
    assert "held-out text of the base" in (outcome.run / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"targets": "query"}, ConfigError, "no projection 'query' in this model; there are down, gate"),
        ({"text_slices": {"train_only_after": "### Answer:"}}, DataError, "nothing follows '### Answer:'"),
        ({"text_slices": {"chunk_length": 1024}}, ConfigError, "over the model's context of 512 tokens"),
        ({"start_from": "no/such-model"}, CheckpointError, "the hub cannot be reached"),
        ({"start_from": "nowhere"}, CheckpointError, "no such file or folder"),
        ({"prompt_format": "no_such"}, ConfigError, "no_such"),
        ({"dora": True, "init": "pissa"}, ConfigError, "choose one"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_trained(
    base: Path,
    text: Path,
    rows: Path,
    listener: Any,
    tmp_path: Path,
    changes: Any,
    error: type[Exception],
    words: str,
) -> None:
    data = rows if "prompt_format" in changes else text
    with pytest.raises(error, match=words):
        run_stage(recipe(base, data, **changes), tmp_path / "run", listener)
    assert not (tmp_path / "run").exists()


def test_an_adapter_in_place_of_a_model_and_weights_that_were_rounded_are_told_apart(
    base: Path, text: Path, listener: Any, tmp_path: Path
) -> None:
    run_stage(recipe(base, text, steps=1), tmp_path / "run", listener)
    with pytest.raises(CheckpointError, match=r"this is an adapter.*--adapter"):
        load_model(tmp_path / "run")
    shutil.copytree(base, tmp_path / "rounded")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "rounded" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"quantised \(gptq\), a format for inference"):
        load_model(tmp_path / "rounded")


class _GatedHub(http.server.BaseHTTPRequestHandler):
    """A hub with a gated model, and none else."""

    def do_GET(self) -> None:
        gated = "meta-llama" in self.path
        self.send_response(403 if gated else 401)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("X-Error-Message", "Access to model is restricted")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def gated_hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _GatedHub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_gated_model_says_which_page_to_accept_and_how_to_log_in(
    gated_hub: str, text: Path, tmp_path: Path
) -> None:
    answers, hub = [], {"HF_ENDPOINT": gated_hub, "HF_HUB_OFFLINE": "0"}
    for name in ("meta-llama/Llama-3.2-1B-Instruct", "someone/misspelt"):
        done = subprocess.run(
            [sys.executable, "-c", "from mm_rec.cli.main import main; main()", "lora", str(text), "--from", name],
            check=False,
            env={**os.environ, **hub, "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=LONGEST, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 2
        answers.append(" ".join(done.stderr.split()))
    assert "Agree to its terms on https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct" in answers[0]
    assert "hf auth login" in answers[0] and "https://huggingface.co/settings/tokens" in answers[0]
    assert "no such model on the hub, or it is private" in answers[1]


def test_evaluation_asks_for_lists_as_the_adapter_learnt_them_and_names_what_was_asked(
    base: Path, text: Path, listener: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run_stage(recipe(base, text, steps=1), run, listener)
    words = tmp_path / "words.csv"
    words.write_text("word\n" + "\n".join(WORDS) + "\n", encoding="utf-8")
    options = [str(words), "--limit", "2", "--max-new-tokens", "8", "--training", str(text)]
    report = tmp_path / "report"
    assert (
        command(["evaluate", "list", str(base), "--adapter", str(run), *options, "--out", str(report)]) == 0
    )
    assert "asked as ### Instruction: … ### Response:" in " ".join(capsys.readouterr().out.split())
    values = json.loads((report / "list_format.json").read_text())
    assert values["model"] == f"{base} + {run}" and values["words"] == str(words) and values["answers"] == 2
    assert command(["evaluate", "list", str(base), *options]) == 0
    assert "asked as a chat" in " ".join(capsys.readouterr().out.split())


def test_a_base_without_a_token_for_padding_is_adapted_and_gets_none(
    base: Path, text: Path, rows: Path, listener: Any, tmp_path: Path
) -> None:
    shutil.copytree(base, tmp_path / "base")
    config = tmp_path / "base" / "tokenizer_config.json"
    values = json.loads(config.read_text())
    values.pop("pad_token", None)
    config.write_text(json.dumps(values))
    assert load_tokenizer(tmp_path / "base").pad_token is None
    for number, (data, changes) in enumerate([(text, {}), (rows, {"prompt_format": "instruction"})]):
        run_stage(recipe(tmp_path / "base", data, **changes), tmp_path / str(number), listener)
        assert load_tokenizer(tmp_path / str(number)).pad_token is None


def test_sources_of_two_kinds_may_share_a_name_and_nothing_is_passed_over(
    base: Path, text: Path, rows: Path, listener: Any, tmp_path: Path
) -> None:
    data = [{"path": str(path), "name": "all"} for path in (text, rows)]
    section = LoraSection(start_from=str(base), data=data, prompt_format="instruction")  # type: ignore[arg-type]
    examples = read_examples(section, load_tokenizer(base), load_model(base).config, listener)
    both = {one.text.split("\n")[1].split()[0] for one in examples.train["all"]}
    assert both == {"Write", "Say"}
    other = section.replace(data=data[:1], validation=[str(rows)])
    with pytest.raises(ConfigError, match="nothing of its kind is learnt"):
        read_examples(other, load_tokenizer(base), load_model(base).config, listener)


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"compile": True}])
def test_memory_saved_and_layers_compiled_learn_the_same(
    base: Path,
    text: Path,
    listener: Any,
    tmp_path: Path,
    changes: dict[str, Any],
    request: pytest.FixtureRequest,
) -> None:
    if "compile" in changes:
        request.getfixturevalue("compiler")
    losses = []
    for name, more in (("plain", {}), ("other", changes)):
        run_stage(recipe(base, text, dropout=0.0, steps=3, **more), tmp_path / name, listener)
        losses.append(
            [one["loss"] for one in read_metrics(tmp_path / name / "metrics.jsonl") if one["kind"] == "train"]
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_an_mmrec_carries_its_state_through_long_conversations_and_resumes(
    listener: Any, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = build(preset("tiny").config(len(tokenizer), num_hidden_layers=2, hidden_size=64), seed=0)
    save_model(model, tokenizer, tmp_path / "base")
    chats = tmp_path / "chats.jsonl"
    turns = [
        {"role": role, "content": f"{word} the {word}."}
        for word in WORDS * 3
        for role in ("user", "assistant")
    ]
    lines = [{"messages": turns}, *({"messages": turns[i : i + 4]} for i in range(0, 60, 2))]
    chats.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    given = recipe(
        tmp_path / "base", chats, seq_len=256, accumulation=None, batch_size=None, checkpoint_every=1
    )
    run_stage(given, tmp_path / "whole", listener)
    assert "go on in the next one, with the model's state" in listener.text

    def stop(moment: str, step: int) -> None:
        if (moment, step) == ("micro", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(given, tmp_path / "broken", listener, on_event=stop)
    run_stage(read_run(tmp_path / "broken"), tmp_path / "broken", listener)
    assert bits(tmp_path / "broken") == bits(tmp_path / "whole")


def test_going_on_with_an_adapter_keeps_its_settings_and_refuses_others(
    base: Path, text: Path, listener: Any, tmp_path: Path
) -> None:
    run_stage(recipe(base, text, alpha=16.0, rslora=True, targets="q+k"), tmp_path / "one", listener)
    more = {name: value for name, value in FAST.items() if name != "rank"}
    data = [{"path": str(text), "name": "text"}]
    values = {"start_from": str(base), "data": data, "start_adapter": str(tmp_path / "one"), **more}
    run_stage(adapting(values), tmp_path / "two", listener)
    settings = json.loads((tmp_path / "two" / "base.json").read_text())["lora"]
    assert (settings["rank"], settings["alpha"], settings["rslora"], settings["targets"]) == (
        4,
        16.0,
        True,
        "q+k",
    )

    def stop(moment: str, step: int) -> None:
        if (moment, step) == ("micro", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(
            adapting({**values, "checkpoint_every": 1}),
            tmp_path / "broken",
            listener,
            on_event=stop,
        )
    run_stage(read_run(tmp_path / "broken"), tmp_path / "broken", listener)
    assert bits(tmp_path / "broken") == bits(tmp_path / "two")
    with pytest.raises(ConfigError, match=r"has alpha 16.0, and 8.0 was asked for"):
        run_stage(adapting({**values, "alpha": 8.0}), tmp_path / "three", listener)


@pytest.fixture
def loud(base: Path, tmp_path: Path) -> Path:
    """A base with larger weights, whose likeliest tokens are words."""
    tokenizer = load_tokenizer(base)
    shape = {"num_hidden_layers": 2, "eos_token_id": tokenizer.eos_token_id, "initializer_range": 0.2}
    save_model(
        build(preset("llama_tiny").config(len(tokenizer), **shape), seed=4), tokenizer, tmp_path / "loud"
    )
    return tmp_path / "loud"


def test_the_conversation_in_the_terminal_switches_adapters(
    loud: Path, rows: Path, listener: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    run_stage(recipe(loud, rows, learning_rate=2e-2), run, listener)
    lines = iter(["Say cat 1.", "/adapters none", "/reset", "Say cat 1.", "/adapters run", "/reset", "Say cat 1.",
                  "/adapters other", "/exit"])  # fmt: skip
    monkeypatch.setattr("rich.console.Console.input", lambda *_, **__: next(lines))
    options = ["--temperature", "0", "--max-new-tokens", "6", "--device", "cpu"]
    assert command(["chat", str(loud), "--adapter", str(run), *options]) == 0
    shown = capsys.readouterr().out.splitlines()
    forgotten = [number for number, line in enumerate(shown) if line == "The conversation is forgotten."]
    switched = shown.index("(run)")
    replies = [
        "\n".join(part) for part in (shown[1:switched], shown[forgotten[0] + 1 : shown.index("run=1")])
    ]
    again = "\n".join(shown[forgotten[1] + 1 : -1])
    assert replies[0] == again != replies[1]
    assert "(run)" in shown and "run=1" in shown and "no adapter 'other'" in " ".join(shown)


def test_adapters_are_switched_in_a_conversation(
    loud: Path, rows: Path, listener: Any, tmp_path: Path
) -> None:
    from mm_rec.inference.chat_session import ChatSession
    from mm_rec.inference.engine import Engine
    from mm_rec.inference.sampler import SamplingParams

    run = tmp_path / "run"
    run_stage(recipe(loud, rows, learning_rate=2e-2), run, listener)
    model, tokenizer = load_with_adapters(loud, [f"{run}=1.0"])
    session = ChatSession(
        Engine(model, torch.device("cpu")), tokenizer, SamplingParams(temperature=0, max_new_tokens=8)
    )
    with_adapter = "".join(session.send("Say cat 1."))
    adapters = model.adapters
    assert isinstance(adapters, Adapters) and adapters.weights == {"run": 1.0}
    adapters.apply({})
    session.reset()
    alone = "".join(session.send("Say cat 1."))
    assert alone != with_adapter
    adapters.apply({"run": 1.0})
    session.reset()
    assert "".join(session.send("Say cat 1.")) == with_adapter
