"""lm-eval on our models, against its own model class for transformers and against plain forward passes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.evaluator import evaluate, simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from rich.console import Console
from transformers import (
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mm_rec.cli.evaluate.tasks import evaluate_tasks
from mm_rec.errors import ConfigError, DataError, TokenizerError
from mm_rec.evaluation.lm_eval_adapter import MMRecLM, _known_tasks, run_tasks
from mm_rec.inference.generate import encode_prompt
from mm_rec.models.loading import load_model_and_tokenizer, save_model
from mm_rec.tokenizers.loading import byte_fallback_ids

QUESTIONS = [
    {"question": "What does she see?", "choices": ["the stars", "the river", "old songs"], "answer": 0},
    {"question": "Ne görüyor?", "choices": ["Yıldızları", "ırmağı", "bir öykü"], "answer": 0},
    {"question": "Who sang?", "choices": ["a girl", "İhtiyar balıkçı", "the river"], "answer": 0},
    {"question": "Çocuk nerede oturdu?", "choices": ["kıyısında", "stars", "she"], "answer": 0},
    {"question": "Where did she live?", "choices": ["by the river", "in the stars", "ona"], "answer": 2},
]
TASKS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "doc_to_choice": "{{choices}}",
        "num_fewshot": 2,
        "fewshot_config": {"sampler": "first_n"},
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "num_fewshot": 0,
        "generation_kwargs": {"until": ["e", "."], "max_gen_toks": 9},
        "metric_list": [{"metric": "exact_match"}],
    },
    "texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}} {{choices | join(' ')}}",
        "num_fewshot": 0,
        "metric_list": [{"metric": "bits_per_byte"}],
    },
}  # fmt: skip


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in QUESTIONS)
    (folder / "questions.jsonl").write_text(rows, encoding="utf-8")
    for name, task in TASKS.items():
        data = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(folder / "questions.jsonl")},
                "cache_dir": str(tmp_path / "cache"),
            },
            "test_split": "test",
            "fewshot_split": "test",
        }
        (folder / f"{name}.yaml").write_text(json.dumps({**data, **task}), encoding="utf-8")
    return folder


@pytest.fixture
def llama(build_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return build_model("llama", context_limit=64).float()


def plain_copy(model: PreTrainedModel) -> LlamaForCausalLM:
    """The same weights in transformers' own class with its own attention."""
    copy = LlamaForCausalLM(type(model.config)(**model.config.to_dict()))
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def reference(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, begin: bool) -> HFLM:
    """lm-eval's own model, which begins texts as the tokenizer does; without `begin` it is told to add nothing."""
    return HFLM(
        pretrained=plain_copy(model),
        tokenizer=deepcopy(tokenizer),
        batch_size=3,
        max_length=64,
        add_bos_token=None if begin else False,
    )


def own_tasks(folder: Path) -> TaskManager:
    return TaskManager(include_path=str(folder), include_defaults=False)


def instances(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=index) for index, one in enumerate(arguments)
    ]


LONG = "Once there was a girl called Ayşe. She lived by the river and sang old songs. " * 3
PAIRS = (
    ("What does she see?", " She sees the stars."),
    ("", "Küçük çocuk oturdu."),
    ("Ne görüyor? ", "Yıldızları görüyor."),
    (LONG, " Küçük çocuk"),
    ("Once", " there"),
)


def test_likelihoods_are_those_of_lm_evals_own_model(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert len(tokenizer.encode(LONG)) > 64
    ours = MMRecLM(llama, tokenizer)
    assert ours.max_length == 64
    given = ours.loglikelihood(instances("loglikelihood", *PAIRS))
    expected = reference(llama, tokenizer, begin=True).loglikelihood(instances("loglikelihood", *PAIRS))
    assert [one[0] for one in given] == pytest.approx([one[0] for one in expected], rel=1e-5)
    assert [one[1] for one in given] == [one[1] for one in expected]


def test_whole_documents_are_scored_as_by_lm_evals_own_model(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = instances("loglikelihood_rolling", (LONG,), ("Küçük çocuk oturdu.",), ("",), (LONG[:180],))
    given = MMRecLM(llama, tokenizer).loglikelihood_rolling(texts)
    expected = reference(llama, tokenizer, begin=False).loglikelihood_rolling(texts)
    assert given == pytest.approx(expected, rel=1e-5)
    assert given[2] == 0


def test_answers_are_those_of_lm_evals_own_model(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with (
        torch.no_grad()
    ):  # no single bytes: broken characters are decoded otherwise piece by piece than whole
        llama.lm_head.weight[byte_fallback_ids(tokenizer)] = 0
    options = {"until": ["e", "ı"], "max_gen_toks": 12, "do_sample": False}
    asked = instances("generate_until", *((context or LONG, options) for context, _ in PAIRS))
    given = MMRecLM(llama, tokenizer).generate_until(asked)
    # One at a time: its batches pad on the left with positions that count the padding.
    expected = [reference(llama, tokenizer, begin=True).generate_until([one])[0] for one in asked]
    assert given == expected
    assert any(given)


@torch.no_grad()
def test_likelihoods_of_mm_rec_are_those_of_a_plain_forward(
    build_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    model = build_model("mmrec")
    given = MMRecLM(model, tokenizer).loglikelihood(instances("loglikelihood", *PAIRS))
    for (context, continuation), (nats, greedy) in zip(PAIRS, given, strict=True):
        head, tail = context.rstrip(), context[len(context.rstrip()) :] + continuation
        whole = torch.tensor([encode_prompt(tokenizer, head + tail)])
        first = len(encode_prompt(tokenizer, head))
        table = model(input_ids=whole, use_cache=False).logits[0, first - 1 : -1].log_softmax(-1)
        chosen = whole[0, first:]
        assert nats == pytest.approx(float(table.gather(1, chosen[:, None]).sum()), rel=1e-9)
        assert greedy == bool((table.argmax(-1) == chosen).all())


def test_a_document_is_cut_only_where_the_model_has_a_limit(
    build_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = build_model("mmrec")
    request = instances("loglikelihood", (LONG, " Küçük çocuk"))
    whole, short = (MMRecLM(model, tokenizer, limit).loglikelihood(request) for limit in (None, 16))
    assert whole != short
    assert caplog.messages == ["1 of 1 requests are longer than 16 tokens: only their last ones are read"]


def test_a_question_in_the_chat_template_is_asked_as_the_model_was_taught(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Path
) -> None:
    lm = MMRecLM(llama, tokenizer, max_length=256)
    loaded = own_tasks(tasks).load(["writing"])
    bare = evaluate(lm=lm, task_dict=loaded)["samples"]["writing"]
    chat = evaluate(lm=lm, task_dict=loaded, apply_chat_template=True)["samples"]["writing"]
    for row, plain, templated in zip(QUESTIONS, bare, chat, strict=True):
        history = [{"role": "user", "content": row["question"]}]
        taught = tokenizer.apply_chat_template(history, tokenize=False, add_generation_prompt=True)
        assert (plain["arguments"][0][0], templated["arguments"][0][0]) == (row["question"], taught)
        assert templated["resps"] == [
            lm.generate_until(instances("generate_until", templated["arguments"][0]))
        ]
    tokenizer.chat_template = None
    with pytest.raises(TokenizerError, match="no chat template"):
        lm.apply_chat_template([{"role": "user", "content": "Ne görüyor?"}])


def test_the_name_of_a_tokenizer_tells_it_from_others(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    other = deepcopy(tokenizer)
    other.add_tokens(["yeni"])
    assert MMRecLM(llama, tokenizer).tokenizer_name == MMRecLM(llama, tokenizer).tokenizer_name
    assert MMRecLM(llama, tokenizer).tokenizer_name != MMRecLM(llama, other).tokenizer_name


@pytest.mark.parametrize("family", ["mmrec", "llama"])
def test_tasks_run_on_a_model_folder(
    build_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    tasks: Path,
    tmp_path: Path,
    family: str,
) -> None:
    folder = tmp_path / "model"
    save_model(build_model(family, context_limit=128).float(), tokenizer, folder)
    model, read_tokenizer = load_model_and_tokenizer(folder)
    given = run_tasks(model, read_tokenizer, list(TASKS), include_path=tasks)
    assert json.loads(json.dumps(given)) == given
    assert given["results"]["texts"]["bits_per_byte,none"] == pytest.approx(bits_per_byte(model, tokenizer))
    by_name = simple_evaluate(
        model="mmrec",
        model_args=f"path={folder}",
        device="cpu",
        batch_size=4,
        tasks=list(TASKS),
        task_manager=own_tasks(tasks),
    )
    assert {**by_name["results"], "versions": by_name["versions"]} == {
        **given["results"],
        "versions": given["versions"],
    }
    if family == "llama":
        # Not the whole documents: it would put a second bos before them.
        lm = reference(model, tokenizer, begin=True)
        other = evaluate(lm=lm, task_dict=own_tasks(tasks).load(["choices", "writing"]))["results"]
        assert other == {task: given["results"][task] for task in other}
    assert [values["sample_len"] for values in given["results"].values()] == [len(QUESTIONS)] * 3


def bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Of the whole texts of the questions, by the model's own forward."""
    nats, size = 0.0, 0
    for row in QUESTIONS:
        text = f"{row['question']} {' '.join(row['choices'])}"  # type: ignore[arg-type]
        ids = torch.tensor([encode_prompt(tokenizer, text)])
        with torch.no_grad():
            table = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        nats -= float(table.gather(1, ids[0, 1:, None]).sum())
        size += len(text.encode())
    return nats / size / math.log(2)


@pytest.mark.parametrize(
    ("asked", "examples"), [(None, {"choices": 2, "texts": 0}), (1, {"choices": 1, "texts": 0})]
)
def test_examples_before_a_question(
    llama: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Path,
    asked: int | None,
    examples: dict[str, int],
) -> None:
    given = run_tasks(llama, tokenizer, ["choices", "texts"], num_fewshot=asked, include_path=tasks)
    assert given["n-shot"] == examples


def test_a_model_is_named_by_its_path() -> None:
    assert get_model("mmrec") is MMRecLM
    with pytest.raises(ConfigError, match="--model_args path=FOLDER"):
        MMRecLM.create_from_arg_string("max_length=128")


def test_sampled_answers_follow_torchs_seed(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    lm = MMRecLM(llama, tokenizer)
    asked = instances(
        "generate_until", *[("Once", {"do_sample": True, "temperature": 2.0, "max_gen_toks": 8})] * 3
    )
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(lm.generate_until(asked))
    assert runs[0] == runs[1] != runs[2]
    assert len(set(runs[0])) > 1


def test_mistakes_are_user_errors(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Path
) -> None:
    with pytest.raises(ConfigError, match=r"no task 'choises'\. Did you mean choices\?"):
        _known_tasks(["choises"], own_tasks(tasks))
    assert _known_tasks(["t*", "choices"], own_tasks(tasks)) == ["texts", "choices"]
    with pytest.raises(ConfigError, match="asks for 64 new tokens and this model reads at most 64"):
        MMRecLM(llama, tokenizer).generate_until(instances("generate_until", ("a", {"max_gen_toks": 64})))
    (tasks / "questions.jsonl").unlink()
    with pytest.raises(DataError, match="the data of choices cannot be had"):
        run_tasks(llama, tokenizer, ["choices"], include_path=tasks)


def test_the_table_has_a_row_for_each_figure(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Path, tmp_path: Path
) -> None:
    with (tmp_path / "output").open("w", encoding="utf-8") as file:
        console = Console(record=True, width=120, file=file)
        results = evaluate_tasks(llama, tokenizer, ["choices", "texts"], console, limit=3, include_path=tasks)
    lines = console.export_text().splitlines()
    accuracy = results["results"]["choices"]["acc,none"]
    assert any("choices" in line and " acc " in line and f"{accuracy:.4f}" in line for line in lines)
    assert any("acc_norm" in line for line in lines) and any("bits_per_byte" in line for line in lines)
    assert "Only the first 3 questions" in lines[-1]
    assert results["results"]["choices"]["sample_len"] == 3
