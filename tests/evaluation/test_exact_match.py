"""Questions answered in batches are those answered one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.errors import DataError
from mm_rec.evaluation.exact_match import score_exact_match
from mm_rec.inference.engine import Engine
from mm_rec.inference.generate import encode_prompt, encode_rendered
from mm_rec.inference.sampler import SamplingParams
from mm_rec.stories.generator import HeldOutQuestion, held_out_questions


def greedy_answer(
    engine: Engine, tokenizer: PreTrainedTokenizerBase, question: HeldOutQuestion, tokens: int
) -> str:
    session = engine.session()
    if question.messages:  # a conversation begins as its template says, and not with bos
        session.prefill(encode_rendered(tokenizer, question.prompt))
    else:
        session.prefill(encode_prompt(tokenizer, question.prompt))
    ids = []
    sampling = SamplingParams(temperature=0, max_new_tokens=tokens)
    for token in session.generate(sampling, {tokenizer.eos_token_id}):
        if "\n" in tokenizer.decode([token]):
            break
        ids.append(token)
    return str(tokenizer.decode(ids)).strip()


def test_in_batches_is_one_by_one(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    engine = Engine(model)
    questions = held_out_questions(0, 11)
    result = score_exact_match(engine, tokenizer, questions, batch_size=4)
    assert [answer["prompt"] for answer in result["answers"]] == [question.prompt for question in questions]
    longest = max(len(tokenizer.encode(f" {q.answer}", add_special_tokens=False)) for q in questions)
    expected = [greedy_answer(engine, tokenizer, question, longest + 4) for question in questions]
    assert [answer["given"] for answer in result["answers"]] == expected
    assert result == score_exact_match(engine, tokenizer, questions, batch_size=100)


def test_right_answers_are_counted_in_groups(
    build_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    engine = Engine(build_model("mmrec"))
    asked = held_out_questions(1, 8)
    given = score_exact_match(engine, tokenizer, asked)["answers"]
    # The same questions, the answers that this model gives made the right ones for all but one.
    right = [
        dataclasses.replace(question, answer=answer["given"][:40] if number else "no such answer")
        for number, (question, answer) in enumerate(zip(asked, given, strict=True))
    ]
    result = score_exact_match(engine, tokenizer, right)
    again = [greedy == question.answer for greedy, question in zip(_given(result), right, strict=True)]
    assert result["right"] == sum(again)
    assert not result["answers"][0]["right"]
    assert result["questions"] == 8
    assert set(result["groups"]) == {"en question", "tr question", "en chat", "tr chat"}
    assert sum(group["right"] for group in result["groups"].values()) == result["right"]
    assert result["accuracy"] == result["right"] / 8


def _given(result: dict[str, list[dict[str, str]]]) -> list[str]:
    return [answer["given"] for answer in result["answers"]]


def test_a_model_that_knows_the_answer_is_right(
    build_model: Callable[[str], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    questions = [
        HeldOutQuestion("Q: who?\nA:", "Ayşe", "en", "question"),
        HeldOutQuestion("Ne görüyor?", "Yıldızları", "tr", "chat"),
    ]
    said = {questions[0].prompt: " Ayşe", questions[1].prompt: "yıldızları "}

    def answer(
        self: Engine, prompts: list[list[int]], max_new_tokens: int, stop_ids: set[int]
    ) -> list[list[int]]:
        texts = [tokenizer.decode(prompt, skip_special_tokens=True) for prompt in prompts]
        assert tokenizer.convert_tokens_to_ids("\n") in stop_ids
        assert tokenizer.eos_token_id in stop_ids
        return [tokenizer.encode(said[text], add_special_tokens=False) for text in texts]

    monkeypatch.setattr(Engine, "generate_greedy", answer)
    result = score_exact_match(Engine(build_model("mmrec")), tokenizer, questions)
    assert [answer["right"] for answer in result["answers"]] == [True, False]
    assert result["groups"]["en question"] == {"questions": 1, "right": 1, "accuracy": 1.0}


def test_no_questions(
    build_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(DataError, match="no questions"):
        score_exact_match(Engine(build_model("mmrec")), tokenizer, [])
