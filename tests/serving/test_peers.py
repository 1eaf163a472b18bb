"""lm-eval measures a model through the server, with what it sends and reads by itself."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from serving.server import Server
from serving.test_generation import alone

PAIRS = (
    ("What does she see?", " She sees the stars."),
    ("Ne görüyor?", " Yıldızları görüyor."),
    ("Küçük çocuk oturdu. " * 8 + "Once", " there"),
    ("Once", " there"),
)


def instances(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=i) for i, one in enumerate(arguments)]


@pytest.mark.parametrize("family", ["mmrec", "llama"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_lm_eval_measures_through_completions_as_the_model_itself(
    server: Server, family: str, batch_size: int
) -> None:
    """With the server's own tokenizer, which lm-eval finds by itself."""
    lm = LocalCompletionsAPI(base_url=f"{server.url}/v1/completions", model=family, batch_size=batch_size)
    assert lm.tokenizer_backend == "remote"
    found = lm.loglikelihood(instances("loglikelihood", *PAIRS), disable_tqdm=True)
    served = server.context.registry.find(family).model
    for (context, text), (value, greedy) in zip(PAIRS, found, strict=True):
        before, whole = (
            served.tokenizer.encode(one, add_special_tokens=False) for one in (context, context + text)
        )
        with torch.inference_mode():
            logits = served.engine.model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        places = range(len(before), len(whole))
        expected = [logits[place - 1, whole[place]] for place in places]
        assert value == pytest.approx(float(sum(expected)), rel=1e-4)
        assert greedy == all(int(logits[place - 1].argmax()) == whole[place] for place in places)


def test_a_stop_token_is_the_last_of_the_log_probabilities(server: Server) -> None:
    """lm-eval has one token written and leaves out the last of the lists, also where the model would write no more."""
    stop = server.context.registry.find("mmrec").model.tokenizer.eos_token_id
    body = {
        "model": "mmrec",
        "prompt": "Once",
        "max_tokens": 4,
        "temperature": 0,
        "logprobs": 1,
        "echo": True,
    }
    whole = ask_completion(server, {**body, "max_tokens": 0})
    stopped = ask_completion(server, {**body, "logit_bias": {str(stop): 100}})
    assert stopped["text"] == whole["text"] == "Once" and stopped["finish_reason"] == "stop"
    assert stopped["logprobs"]["tokens"] == [*whole["logprobs"]["tokens"], "<|endoftext|>"]
    assert stopped["logprobs"]["token_logprobs"][:-1] == whole["logprobs"]["token_logprobs"]
    assert stopped["logprobs"]["text_offset"][-1] == len("Once")
    raw = httpx.post(
        f"{server.url}/v1/completions", json={**body, "logit_bias": {str(stop): 100}, "stream": True}
    )
    chunks = [json.loads(line.removeprefix("data: ")) for line in raw.text.split("\n\n")[:-2]]
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [token for one in told if one for token in one["tokens"]] == stopped["logprobs"]["tokens"]
    assert told[-1]["tokens"] == ["<|endoftext|>"] and chunks[-1]["choices"][0]["finish_reason"] == "stop"


def ask_completion(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    [choice] = answer.json()["choices"]
    found: dict[str, Any] = choice
    return found


def test_lm_eval_reads_what_the_server_writes(server: Server) -> None:
    lm = LocalCompletionsAPI(base_url=f"{server.url}/v1/completions", model="mmrec")
    options = {"until": ["e"], "max_gen_toks": 12}
    [found] = lm.generate_until(instances("generate_until", ("Once there", options)), disable_tqdm=True)
    assert "e" not in found
    chat = LocalChatCompletion(base_url=f"{server.url}/v1/chat/completions", model="mmrec")
    prompt = chat.apply_chat_template([{"role": "user", "content": "Hello!"}])
    [answer] = chat.generate_until(
        instances("generate_until", (prompt, {"until": [], "max_gen_toks": 24})), disable_tqdm=True
    )
    assert answer == alone(server, "mmrec", [{"role": "user", "content": "Hello!"}])
