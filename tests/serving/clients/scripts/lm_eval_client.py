"""lm-eval: a task through completions, and an answer through chat completions."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import lm_eval
from cases import BASE_URL, MODEL, QUESTIONS, SHORT, report
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion


def chat() -> Any:
    """One answer."""
    model = LocalChatCompletion(base_url=f"{BASE_URL}/chat/completions", model=MODEL)
    prompt = model.apply_chat_template([{"role": "user", "content": QUESTIONS[0]}])
    asked = Instance("generate_until", {}, (prompt, {"until": [], "max_gen_toks": SHORT}), 0)
    return {"text": model.generate_until([asked], disable_tqdm=True)[0]}


def likelihoods() -> Any:
    """The log-probability of each choice of a task, with the server's own tokenizer."""
    choices = [" the stars.", " Yıldızları görüyor."]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "questions.json"
        file.write_text(json.dumps([{"question": question} for question in QUESTIONS]), "utf-8")
        task = {
            "task": "stars", "output_type": "multiple_choice", "dataset_path": "json", "test_split": "train",
            "dataset_kwargs": {"data_files": {"train": str(file)}, "cache_dir": folder},
            "doc_to_text": "{{question}}", "doc_to_choice": choices, "doc_to_target": 0, "target_delimiter": "",
        }  # fmt: skip
        arguments = {"base_url": f"{BASE_URL}/completions", "model": MODEL}
        found: Any = lm_eval.simple_evaluate("local-completions", model_args=arguments, tasks=[task])
    return [
        [(*given, *value) for given, value in zip(sample["arguments"], sample["filtered_resps"], strict=True)]
        for sample in found["samples"]["stars"]
    ]


report(globals())
