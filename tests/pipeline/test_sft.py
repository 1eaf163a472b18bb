"""Fine-tuning on conversations: what it leaves, how it goes on, what it measures, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conversations_made import made
from stage_recipes import one_stage, pretraining, recipe_text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GraniteConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
)

from mm_rec.cli.main import run as command
from mm_rec.data.conversations.dataset_writer import to_rows, write_rows
from mm_rec.data.conversations.rendering import render_batch
from mm_rec.data.corpus import Corpus
from mm_rec.data.packing import PackedConversations
from mm_rec.errors import CheckpointError, ConfigError, DataError, TokenizerError
from mm_rec.evaluation.finetune_eval import score_assistant_tokens
from mm_rec.evaluation.perplexity import evaluate_corpus
from mm_rec.models.loading import load_model, load_model_and_tokenizer, save_model
from mm_rec.models.presets import build
from mm_rec.pipeline.conversation_examples import read_conversation_examples
from mm_rec.pipeline.finetune_data import plan_rows
from mm_rec.pipeline.recipe import Recipe, read_run, recipe_of
from mm_rec.pipeline.run import run_recipe, run_stage
from mm_rec.pipeline.verify_resume import verify_resume
from mm_rec.runs.files import write_text
from mm_rec.runs.metrics_log import read_metrics

TINY = {
    "steps": 6,
    "seq_len": 2048,
    "batch_size": 1,
    "validate_every": 3,
    "validation_rows": 256,
    "precision": "float32",
    "learning_rate": 3e-3,
}


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 conversations with tools and weights, in OpenAI's format."""
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    rows, _ = to_rows(made(120, seed=9), "openai", path)
    write_rows(rows, path)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A pre-trained run."""
    run = tmp_path_factory.mktemp("base") / "run"
    run_stage(pretraining(_base_values(text_file)), run, _Silent())
    return run


def _base_values(text_file: Path) -> dict[str, Any]:
    return {
        "data": {"sources": [str(text_file)]},
        "tokenizer": {"vocab_size": 600},
        "model": {"size": "tiny", "changes": {"num_hidden_layers": 2, "hidden_size": 64}},
        "steps": 6,
        "seq_len": 32,
        "batch_size": 4,
        "precision": "float32",
    }


class _Silent:
    def say(self, text: str) -> None:
        """Nothing."""

    def progress(self, step: int, steps: int, values: dict[str, float]) -> None:
        """Nothing."""


def recipe(base: Path | str, *data: Any, **changes: Any) -> Recipe:
    return one_stage("sft", {"start_from": str(base), "data": list(data), **TINY, **changes})


def test_copies_of_one_conversation_are_not_held_out_instead_of_a_share(
    base: Path, tmp_path: Path, listener: Any
) -> None:
    section = recipe(base, "unused").stages[0].section
    model, tokenizer = load_model_and_tokenizer(base)

    def share(rows: list[str], fraction: float) -> float:
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(json.dumps({"prompt": row, "response": "Yes."}) for row in rows))
        chosen = section.replace(data=[str(path)], validation_fraction=fraction)
        examples = read_conversation_examples(chosen, tokenizer, model.config, listener)
        plan_rows(chosen, tokenizer, model.config, examples, None, listener)
        return len(examples.held_out) / len(rows)

    questions = [f"Is {number} a number?" for number in range(30)]
    for repeated in questions[:10]:  # whichever hash the repeated one has
        held = share([repeated] * 24 + questions[10:20], 0.05)
        assert 0 < held < 0.2 and f"held out ({held:.1%})" in listener.said[-1]
    assert share([questions[0], questions[1]], 0.05) == 0.5
    assert listener.said[-1].startswith("warning: 50% of the examples are held out, and 5% was asked for")


def test_a_run_leaves_everything_and_says_what_the_base_forgot(
    base: Path, chats: Path, listener: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    outcome = run_stage(recipe(base, str(chats)), run, listener)
    assert (outcome.outcome, outcome.step) == ("finished", 6)
    for name in (
        "recipe.yaml", "lineage.json", "metrics.jsonl", "training_log.json", "training_graph.png", "README.md",
        "best/config.json", "final/model.safetensors", "final/chat_template.jinja", "forgetting.json", "samples.jsonl",
    ):  # fmt: skip
        assert (run / name).stat().st_size > 0, name
    log = json.loads((run / "training_log.json").read_text())
    assert log["loss"] < log["first_loss"] and log["base_model_name"] == str(base)
    model, tokenizer = load_model_and_tokenizer(run / "final")
    figures = json.loads((run / "forgetting.json").read_text())
    validation = Corpus.open(base / "data" / "validation")
    seq_len = min(512, validation.tokens)
    for place, moment in ((base / "final", "before"), (run / "final", "after")):
        expected = evaluate_corpus(
            load_model(place), validation, tokenizer, seq_len=seq_len, batch=2, max_rows=64
        )
        assert figures[moment] == pytest.approx(expected.bits_per_byte, rel=1e-5)
    assert (
        log["base_text_bits_per_byte"] == figures and "bits a byte before" in (run / "README.md").read_text()
    )
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [len(row["answers"]) for row in samples] == [3, 3] and "→" in listener.text
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert "padding" in listener.text and "of them learnt" in listener.text


def test_validation_is_over_learnt_tokens_alone(
    base: Path, chats: Path, listener: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    held = tmp_path / "held.jsonl"
    rows, _ = to_rows(made(10, seed=21), "openai", held)
    write_rows(rows, held)
    run_stage(recipe(base, str(chats), validation=[str(held)]), run, listener)
    model, tokenizer = load_model_and_tokenizer(run / "final")
    rendered = list(render_batch(tokenizer, made(10, seed=21)))
    alone = [
        score_assistant_tokens(model, PackedConversations([one], 2048), 2, 1)
        for one in rendered
        if one.loss_mask.any()
    ]
    expected = sum(one.loss * one.tokens for one in alone) / sum(one.tokens for one in alone)
    measured = json.loads((run / "training_log.json").read_text())["best_validation"]
    assert measured["step"] == 6 and measured["loss"] == pytest.approx(expected, rel=1e-4)
    assert sum(one.tokens for one in alone) == sum(int(one.loss_mask.sum()) for one in rendered)


@pytest.mark.parametrize(
    "changes",
    [
        {"text_share": 0.3},
        {"seq_len": 256},  # conversations go on from row to row
        {"train_on": "last", "template": "chatml"},
    ],
)
def test_a_stopped_run_goes_on_and_equals_an_unbroken_one(
    base: Path, chats: Path, listener: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    given, whole, broken = recipe(base, str(chats), **changes), tmp_path / "whole", tmp_path / "broken"
    run_stage(given, whole, listener)

    def interrupt(moment: str, step: int) -> None:
        if (moment, step) == ("step", 2):
            os.kill(os.getpid(), 2)

    assert run_stage(given, broken, listener, interrupt).outcome == "stopped"
    assert run_stage(read_run(broken), broken, listener).outcome == "finished"
    assert "at step 3 of 6" in listener.text
    assert ("go on in the next one" in listener.text) == ("seq_len" in changes)
    one, other = (load_model(run / "final") for run in (whole, broken))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    metrics = [
        [(row["step"], row["loss"]) for row in read_metrics(run / "metrics.jsonl") if "loss" in row]
        for run in (whole, broken)
    ]
    assert metrics[0] == metrics[1]


def test_every_problem_is_listed_once_and_nothing_is_trained(
    base: Path, chats: Path, listener: Any, tmp_path: Path
) -> None:
    file = tmp_path / "bad.jsonl"
    user, answer = {"role": "user", "content": "Old?"}, {"role": "assistant", "content": "No."}
    call = {"type": "function", "function": {"name": "hava", "arguments": "{oops"}}
    rows: list[Any] = [
        {"messages": [user, answer]},
        {"messages": [{"content": "x"}, answer]},
        {"messages": [user, {"role": "assistant", "content": ""}]},
        {"messages": [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}, user, answer]},
        {"messages": [user, {"role": "assistant", "tool_calls": [call]}]},
        {"messages": [user, answer], "colour": "red"},
        {"messages": [user, {**answer, "weight": 0}]},
        {"messages": [{"role": "user", "content": "uzun " * 900}, answer]},
        {"messages": [user, {"role": "assistant", "content": "a <|endoftext|> b"}]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{not json\n")
    run = tmp_path / "run"
    given = recipe(base, str(file), str(chats), max_length=1024)
    with pytest.raises(DataError, match="nothing was trained") as raised:
        run_stage(given, run, listener)
    message = str(raised.value)
    for line, kind in (
        (2, "missing-role"), (3, "empty-answer"), (4, "two-systems"), (5, "bad-arguments"), (6, "unknown-field"),
        (7, "nothing-learnt"), (8, "too-long"), (9, "special-token"), (10, "not-json"),
    ):  # fmt: skip
        section = message.split(f"{kind}: ")[1].split("→", maxsplit=1)[0]
        assert section.count(f"({file}:{line})") == 1, (kind, line, message)
    assert not run.exists()
    assert (
        run_stage(recipe(base, str(file), str(chats), max_length=1024, fix=True, steps=1), run, listener).step
        == 1
    )
    assert "left out" in listener.text


@pytest.mark.parametrize("layout", ["default", "chatml", "llama3"])
def test_a_foreign_model_gets_a_layout_and_a_larger_vocabulary(
    chats: Path, listener: Any, tmp_path: Path, layout: str
) -> None:
    vocabulary = {piece: index for index, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary | {"<eot>": 256}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<eot>", eos_token="<eot>")
    model = build(GPT2Config(vocab_size=257, n_embd=32, n_layer=1, n_head=2, n_positions=2048), seed=0)
    save_model(model, tokenizer, tmp_path / "gpt2")
    given = recipe(tmp_path / "gpt2", str(chats), template=layout, seq_len=2048, steps=2)
    run_stage(given, tmp_path / "run", listener)
    tuned, prepared = load_model_and_tokenizer(tmp_path / "run" / "final")
    assert tuned.config.vocab_size == len(prepared) > 257 and "it was enlarged by" in listener.text
    assert prepared.pad_token != prepared.eos_token
    messages = [{"role": "user", "content": "Selam"}]
    again = AutoTokenizer.from_pretrained(tmp_path / "run" / "final")
    asked = again.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    answer = tuned.generate(torch.tensor([asked]), max_new_tokens=3, do_sample=False)
    assert answer[0, : len(asked)].tolist() == asked and answer.shape[1] > len(asked)


def test_mistakes_are_said_before_anything_is_written(
    base: Path, chats: Path, listener: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no model to begin with"):
        run_stage(one_stage("sft", {"data": [str(chats)]}), tmp_path / "a", listener)
    with pytest.raises(ConfigError, match="nothing to learn"):
        run_stage(recipe(base), tmp_path / "b", listener)
    copy = tmp_path / "model"
    save_model(*load_model_and_tokenizer(base), copy)
    with pytest.raises(ConfigError, match="--text FILES"):
        run_stage(recipe(copy, str(chats), text_share=0.1), tmp_path / "c", listener)
    template = copy / "chat_template.jinja"
    template.write_text("{{ messages[0]['content'] }}")
    with pytest.raises(TokenizerError, match="cannot be known what is to be learnt"):
        run_stage(recipe(copy, str(chats)), tmp_path / "d", listener)
    with pytest.raises(ConfigError, match="weighs 0"):
        run_stage(recipe(base, {"path": str(chats), "weight": 0}), tmp_path / "e", listener)
    assert not any((tmp_path / name).exists() for name in "abcde")


def test_weights_and_text_have_their_shares(
    base: Path, chats: Path, text_file: Path, listener: Any, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    rows, _ = to_rows(made(120, seed=10), "openai", other)
    write_rows(rows, other)
    given = recipe(
        base, {"path": str(chats), "name": "a", "weight": 3.0}, {"path": str(other), "name": "b"},
        text=[str(text_file)], text_share=0.2, steps=1, batch_size=40,
    )  # fmt: skip
    run_stage(given, tmp_path / "run", listener)
    shares = {line.split(":")[0]: line for line in listener.said if line.endswith("of the rows")}
    assert "20.0%" in shares["text of the base"]
    a, b = (float(shares[name].split(": ")[1].split("%")[0]) for name in "ab")
    assert a / b == pytest.approx(3, rel=0.25)  # of 40 rows
    lineage = json.loads((tmp_path / "run" / "lineage.json").read_text())["inputs"]
    assert set(lineage["conversations"]) == {"a", "b"} and len(lineage["text"]) == 64


def test_a_recipe_of_three_stages_runs_and_goes_on(
    text_file: Path, chats: Path, listener: Any, tmp_path: Path
) -> None:
    section = {"data": [str(chats)], **TINY, "steps": 2}
    stages = [
        {"kind": "pretrain", **_base_values(text_file)},
        {"kind": "sft", "name": "instruct", **section},
        {"kind": "sft", **section, "text_share": 0.2},
    ]
    whole = recipe_of({"stages": stages})
    folder = tmp_path / "all"
    outcome = run_recipe(whole, folder, listener)
    assert (outcome.run, outcome.outcome) == (folder / "sft", "finished")
    for stage, before in (("instruct", "pretrain"), ("sft", "instruct")):
        lineage = json.loads((folder / stage / "lineage.json").read_text())
        assert lineage["inputs"]["model"] == str(folder / before / "final")
    # The text of the pre-training is found through the stage between.
    assert json.loads((folder / "sft" / "forgetting.json").read_text())["before"] > 0
    weights = (folder / "sft" / "final" / "model.safetensors").read_bytes()
    assert run_recipe(whole, folder, listener).outcome == "finished"
    assert (folder / "sft" / "final" / "model.safetensors").read_bytes() == weights
    with pytest.raises(ConfigError, match="another recipe: seed changed after pretrain, instruct, sft"):
        run_recipe(dataclasses.replace(whole, seed=1), folder, listener)
    with pytest.raises(ConfigError, match="no stage"):
        recipe_of({"stages": []})


def test_the_commands(
    base: Path,
    chats: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["--steps", "2", "--seq-len", "2048", "--batch-size", "1", "--precision", "float32"]
    assert (
        command(["sft", str(chats), "--from", str(base), "--name", "talk", *tiny, "--text-share", "0.1"]) == 0
    )
    assert "mmrec chat runs/talk" in capsys.readouterr().out.replace("\n", " ")
    assert command(["sft", str(chats), *tiny]) == 2
    assert "no model to begin with" in capsys.readouterr().err
    assert command(["sft", str(chats), "--from", str(base), "--train-on", "some"]) == 2
    assert "train_on" in capsys.readouterr().err
    assert command(["sft", "--resume", "runs/talk"]) == 0
    assert (
        command(["evaluate", "chat", "runs/talk", str(chats), "--limit", "5", "--max-new-tokens", "5"]) == 0
    )
    assert "chrF" in capsys.readouterr().out


def test_real_conversations_are_learnt(
    real_data: Callable[[str], Path], base: Path, listener: Any, tmp_path: Path
) -> None:
    names = ("instruct/llamafactory_identity.json", "instruct/tr_nutuk_qa_600.json")
    given = recipe(base, *(str(real_data(name)) for name in names), fix=True, steps=30, batch_size=4)
    run_stage(given, tmp_path / "run", listener)
    log = json.loads((tmp_path / "run" / "training_log.json").read_text())
    assert log["loss"] < log["first_loss"] - 1


@pytest.mark.seldom(
    covers=["mm_rec/data/*", "mm_rec/models/*", "mm_rec/pipeline/*", "mm_rec/runs/*", "mm_rec/training/*"]
)
def test_a_killed_run_loses_nothing(base: Path, chats: Path, listener: Any, tmp_path: Path) -> None:
    given = recipe(base, str(chats), seq_len=256, text_share=0.3)  # long conversations are carried on
    write_text(tmp_path / "recipe.yaml", recipe_text(given))
    verify_resume(tmp_path / "recipe.yaml", listener, steps=6, kills=2)
    assert "identical after" in listener.text and listener.text.count("killed:") >= 1


def test_what_a_later_stage_lacks_is_said_before_the_first_and_may_be_mended(
    text_file: Path, chats: Path, listener: Any, tmp_path: Path
) -> None:
    section = {"data": [str(tmp_path / "none.jsonl")], **TINY, "steps": 2}
    first = {"kind": "pretrain", **_base_values(text_file)}
    whole = recipe_of({"stages": [first, {"kind": "sft", **section}]})
    with pytest.raises(DataError, match=r"none\.jsonl"):
        run_recipe(whole, tmp_path / "all", listener)
    assert not (tmp_path / "all").exists()
    bad = tmp_path / "none.jsonl"
    bad.write_text('{"messages": []}\n')
    with pytest.raises(DataError, match="nothing was trained"):
        run_recipe(whole, tmp_path / "all", listener)
    mended = recipe_of({"stages": [first, {"kind": "sft", **section, "data": [str(chats)]}]})
    assert run_recipe(mended, tmp_path / "all", listener).outcome == "finished"
    with pytest.raises(ConfigError, match="add start_from"):
        run_recipe(one_stage("sft", section), tmp_path / "other", listener)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_an_epoch_is_every_conversation_once(
    base: Path, chats: Path, listener: Any, tmp_path: Path, accumulation: int
) -> None:
    run_stage(
        recipe(base, str(chats), steps=None, epochs=2, seq_len=1280, accumulation=accumulation),
        tmp_path / "r",
        listener,
    )
    log = json.loads((tmp_path / "r" / "training_log.json").read_text())
    lengths = next(line for line in listener.said if "examples to train on" in line)
    tokens = int(lengths.split("%); ")[1].split(" tokens")[0].replace(",", ""))
    # Every position counts once in a step, padding left out.
    assert log["tokens"] == pytest.approx(2 * tokens, rel=0.12)


def test_a_very_long_conversation_is_refused_unless_asked_for(
    base: Path, chats: Path, listener: Any, tmp_path: Path
) -> None:
    long = tmp_path / "long.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": "uzun " * 9000}, {"role": "assistant", "content": "No."}]}
    ]
    long.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"16,384 are the most.*long\.jsonl:1"):
        run_stage(recipe(base, str(chats), str(long)), tmp_path / "run", listener)
    given = recipe(base, str(chats), str(long), max_length=60_000, steps=1, seq_len=None, batch_size=None)
    run_stage(given, tmp_path / "run", listener)
    assert "is spread over" in listener.text and "--max-length makes it less" in listener.text


def test_a_stopped_run_of_another_family_goes_on_before_its_first_validation(
    chats: Path, listener: Any, tmp_path: Path, text_file: Path
) -> None:
    changes = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 1}
    run_stage(
        pretraining({**_base_values(text_file), "model": {"size": "llama_tiny", "changes": changes}}),
        tmp_path / "base",
        listener,
    )
    given = recipe(tmp_path / "base", str(chats), seq_len=None, batch_size=None)

    def interrupt(moment: str, step: int) -> None:
        if (moment, step) == ("step", 1):
            os.kill(os.getpid(), 2)

    assert run_stage(given, tmp_path / "broken", listener, interrupt).outcome == "stopped"
    assert (tmp_path / "broken" / "README.md").is_file()
    assert run_stage(read_run(tmp_path / "broken"), tmp_path / "broken", listener).outcome == "finished"
    run_stage(given, tmp_path / "whole", listener)
    one, other = (load_model(tmp_path / run / "final") for run in ("whole", "broken"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    samples = [(tmp_path / run / "samples.jsonl").read_text() for run in ("whole", "broken")]
    assert samples[0] == samples[1] and len(samples[0].splitlines()) == 2


def test_too_few_conversations_and_a_model_that_cannot_be_trained(
    base: Path, chats: Path, listener: Any, tmp_path: Path
) -> None:
    one = tmp_path / "one.jsonl"
    one.write_text(chats.read_text(encoding="utf-8").splitlines()[0] + "\n")
    with pytest.raises(DataError, match="1 examples are not enough to hold one out"):
        run_stage(recipe(base, str(one)), tmp_path / "a", listener)
    tokenizer = load_model_and_tokenizer(base)[1]
    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    for config in (PhiConfig(**shape), GraniteConfig(**shape, logits_scaling=8.0)):
        save_model(build(config, seed=0), tokenizer, tmp_path / config.model_type)
    with pytest.raises(
        CheckpointError, match=r"'phi' .* neither trained nor measured here"
    ):  # its head has a bias
        run_stage(recipe(tmp_path / "phi", str(chats)), tmp_path / "run", listener)
    assert not (tmp_path / "run").exists()
    assert (
        run_stage(recipe(tmp_path / "granite", str(chats)), tmp_path / "run", listener).outcome == "finished"
    )
