"""Chat evaluation: predictions and replies against plain runs of the model, and every figure of known replies."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mm_rec.cli.evaluate.chat import evaluate_chat_files
from mm_rec.data.conversations.conversation import ChatMessage, Conversation, ToolCall
from mm_rec.data.conversations.rendering import chat_prompt_ids, render
from mm_rec.errors import CheckpointError, ConfigError, DataError
from mm_rec.evaluation import reply_format, text_metrics
from mm_rec.evaluation.chat_eval import evaluate_chat
from mm_rec.evaluation.chat_report import write_chat_report
from mm_rec.inference.engine import Engine
from mm_rec.inference.generate import encode_rendered
from mm_rec.inference.sampler import SamplingParams

GREEDY = SamplingParams(temperature=0, max_new_tokens=20)
END = "\n<|endoftext|>"
WEATHER = {"type": "function", "function": {"name": "hava", "parameters": {"type": "object"}}}


def talk(*contents: str, category: str | None = None, location: str = "") -> Conversation:
    roles = ("user", "assistant") * len(contents)
    messages = tuple(ChatMessage(role, text) for role, text in zip(roles, contents, strict=False))
    return Conversation(
        messages, metadata={} if category is None else {"category": category}, location=location
    )


TALKS = [
    talk("Ayşe kim?", "Bir kız."),
    talk("What does she see?", "She sees the stars.", "And the river?", "She sees it too.\nYes."),
    talk("Ne?", "x", category="kısa"),
    Conversation(
        (
            ChatMessage("system", "Kısa yanıt ver."),
            ChatMessage("user", "Yarın hava nasıl?"),
            ChatMessage("assistant", tool_calls=(ToolCall("hava", {"gün": "yarın"}),)),
        ),
        (WEATHER,),
        {"category": "araç"},
        "talks.jsonl:4",
    ),
]


class ScriptedEngine(Engine):
    """An engine whose model says given texts, whatever it is asked, in the order of the prompts that it is given."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, said: dict[str, str]
    ) -> None:
        super().__init__(model)
        self.tokenizer, self.said = tokenizer, said

    def generate_greedy(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_ids: Collection[int]
    ) -> list[list[int]]:
        texts = [str(self.tokenizer.decode(prompt)) for prompt in prompts]
        replies = [next(reply for question, reply in self.said.items() if question in text) for text in texts]
        rows = [encode_rendered(self.tokenizer, reply)[:max_new_tokens] for reply in replies]
        return [
            row[: min((row.index(stop) for stop in stop_ids if stop in row), default=len(row))]
            for row in rows
        ]


@pytest.fixture
def small(build_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return build_model("mmrec")


def test_the_given_answers_are_predicted_as_by_a_plain_run(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    report = evaluate_chat(Engine(model), tokenizer, TALKS, GREEDY)
    nats = tokens = hits = 0
    for conversation, answer in zip(TALKS, report["answers"], strict=True):
        rendered = render(tokenizer, conversation, "last")
        ids = torch.from_numpy(rendered.ids).long()
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        learnt = torch.from_numpy(rendered.loss_mask)[1:]
        losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")[learnt]
        right = (logits.argmax(-1) == ids[1:])[learnt]
        assert answer["forced"]["nats"] == pytest.approx(float(losses.sum()), rel=1e-6)
        assert (answer["forced"]["tokens"], answer["forced"]["right"]) == (len(losses), int(right.sum()))
        nats, tokens, hits = nats + float(losses.sum()), tokens + len(losses), hits + int(right.sum())
    total = report["total"]
    assert total["loss"] == pytest.approx(nats / tokens, rel=1e-6)
    assert total["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert total["token_accuracy"] == hits / tokens
    assert total["learnt_tokens"] == tokens


def test_replies_are_those_of_a_conversation_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    engine = Engine(model)
    report = evaluate_chat(engine, tokenizer, TALKS, GREEDY)
    for conversation, answer in zip(TALKS, report["answers"], strict=True):
        session = engine.session()
        session.prefill(chat_prompt_ids(tokenizer, conversation.messages[:-1], conversation.tools))
        ids = list(session.generate(GREEDY, [tokenizer.eos_token_id]))
        assert answer["text"] == tokenizer.decode(ids).strip()
        assert (answer["tokens"], answer["ended"]) == (len(ids), session.ended)


def test_sampled_replies_follow_the_seed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    def texts(sampling: SamplingParams) -> list[str]:
        report = evaluate_chat(Engine(model), tokenizer, TALKS, sampling)
        return [answer["text"] for answer in report["answers"]]

    hot = SamplingParams(temperature=1.5, seed=3, max_new_tokens=20)
    assert texts(hot) == texts(hot) != texts(GREEDY)
    assert texts(hot.replace(seed=4)) != texts(hot)
    # With a penalty too the likeliest tokens are taken, one conversation after the other.
    assert texts(GREEDY.replace(repetition_penalty=1.0 + 1e-12)) == texts(GREEDY)


def test_right_replies_have_full_marks(small: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    call = '<|tool_call|>{"name": "hava", "arguments": {"gün": "yarın"}}'
    said = {
        "Ayşe kim?": f"bir KIZ{END}",
        "the river?": f"She sees it too.\nYes.{END}",
        "Ne?": f"x{END}",
        "Yarın": f"{call}{END}",
    }
    report = evaluate_chat(
        ScriptedEngine(small, tokenizer, said), tokenizer, TALKS, GREEDY.replace(max_new_tokens=100)
    )
    total, categories = report["total"], report["categories"]
    assert list(categories) == ["araç", "en", "kısa", "tr"]
    assert [categories[name]["answers"] for name in categories] == [1, 1, 1, 1]
    for name in (
        "rouge_1",
        "rouge_l",
        "exact_match",
        "calls_right",
        "stop_rate",
        "format_rate",
        "distinct_1",
    ):
        assert total[name] == 1, name
    assert categories["en"]["bleu"] == pytest.approx(100) and categories["en"]["chrf"] == pytest.approx(100)
    assert total["calls"] == 1 and categories["en"]["calls_right"] is None
    assert categories["araç"]["bleu"] is None and categories["araç"]["rouge_l"] is None
    assert categories["en"]["words"] == categories["en"]["reference_words"] == 5
    assert report["faults"] == {} and report["judge"] is None and total["judge"] is None
    replies, given = ["bir KIZ", "She sees it too.\nYes.", "x"], ["Bir kız.", "She sees it too.\nYes.", "x"]
    assert total["bleu"] == text_metrics.bleu(replies, given)
    assert report["answers"][3]["calls"] == report["answers"][3]["reference_calls"]
    assert report["signatures"] == text_metrics.signatures()


def test_bad_replies_are_counted_by_what_is_wrong(
    small: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    said = {
        "Ayşe kim?": f"bir bir bir bir bir<|user|>{END}",
        "the river?": "She " * 200,
        "Ne?": END,
        "Yarın": f'<|tool_call|>{{"name": "hava", "arguments": "yarın"}}{END}',
    }
    report = evaluate_chat(
        ScriptedEngine(small, tokenizer, said), tokenizer, TALKS, GREEDY.replace(max_new_tokens=60)
    )
    total, answers = report["total"], report["answers"]
    assert [answer["fault"] for answer in answers] == [
        reply_format.SPECIAL_TOKEN, None, reply_format.EMPTY, reply_format.UNREADABLE_CALL,
    ]  # fmt: skip
    assert report["faults"] == {
        reply_format.SPECIAL_TOKEN: 1, reply_format.EMPTY: 1, reply_format.UNREADABLE_CALL: 1,
    }  # fmt: skip
    assert total["format_rate"] == 1 / 4 and total["stop_rate"] == 3 / 4
    assert [answer["ended"] for answer in answers] == [True, False, True, True]
    assert answers[1]["tokens"] == 60 and total["exact_match"] == 0 and total["calls_right"] == 0
    assert 0 < total["repeated_4grams"] < 1 and total["distinct_1"] < 0.5


def test_the_last_answer_counts_whatever_follows_it_or_weighs(
    small: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    plain = talk("Ayşe kim?", " Bir kız. ")
    light = plain.with_messages([plain.messages[0], ChatMessage("assistant", "Bir kız.", weight=0)])
    longer = plain.with_messages([*plain.messages, ChatMessage("user", "Sonra?")])
    answers = evaluate_chat(Engine(small), tokenizer, [plain, light, longer], GREEDY)["answers"]
    assert answers[0]["forced"]["tokens"] > 2
    assert answers[1]["forced"] == pytest.approx(answers[0]["forced"]) == answers[2]["forced"]
    assert {answer["reference"] for answer in answers} == {"Bir kız."}


def test_conversations_too_long_for_the_model_are_named(
    build_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    engine = Engine(build_model("llama", context_limit=60))
    long = [talk("uzun " * 60, "x", location="a.jsonl:7"), talk("x", "uzun " * 60)]
    report = evaluate_chat(engine, tokenizer, [TALKS[0], *long], GREEDY)
    assert report["too_long"] == ["a.jsonl:7", "conversation 3"]
    assert report["total"]["answers"] == 1
    with pytest.raises(DataError, match="none of 2 conversations fits into the model's context of 60 tokens"):
        evaluate_chat(engine, tokenizer, long, GREEDY)


def test_what_cannot_be_evaluated_is_an_error(
    small: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    engine = Engine(small)
    with pytest.raises(DataError, match="at least one"):
        evaluate_chat(engine, tokenizer, [], GREEDY)
    with pytest.raises(DataError, match=r"b.csv:3: this conversation has no answer"):
        evaluate_chat(engine, tokenizer, [talk("Ne?", location="b.csv:3")], GREEDY)
    with pytest.raises(ConfigError, match="stop"):
        evaluate_chat(engine, tokenizer, TALKS, GREEDY.replace(stop=("x",)))
    with torch.no_grad():
        small.get_output_embeddings().weight[7] = torch.nan
    with pytest.raises(CheckpointError, match="not finite"):
        evaluate_chat(engine, tokenizer, TALKS, GREEDY)


def test_the_page_shows_answers_as_text(
    small: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, browser: Browser, tmp_path: Path
) -> None:
    evil = "<script>document.title = 'x'</script>"
    said = {"Ayşe kim?": evil + END, "the river?": "Yes." + END, "Ne?": END, "Yarın": "Güneşli." + END}
    engine = ScriptedEngine(small, tokenizer, said)
    report = evaluate_chat(engine, tokenizer, TALKS, GREEDY.replace(max_new_tokens=100))
    about = {"path": "runs/<x>", "family": "mmrec", "parameters": 1234}
    values, path = write_chat_report({"model": about, "files": ["a.jsonl"], **report}, tmp_path)
    assert json.loads(values.read_text("utf-8"))["answers"][0]["content"] == evil
    page = browser.new_page(viewport={"width": 380, "height": 800})
    page.goto(path.as_uri())
    assert page.title() == "Chat evaluation: runs/<x>"
    assert page.get_by_text(evil).is_visible() and page.get_by_text('→ hava({"gün": "yarın"})').is_visible()
    assert page.get_by_role("cell", name="kısa").count() == 2
    assert reply_format.EMPTY in page.content()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_command(
    build_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = build_model("mmrec").float()
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Soru {n}?"},
                {"role": "assistant", "content": f"Yanıt {n}."},
            ]
        }
        for n in range(5)
    ]
    file = tmp_path / "konuşmalar.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    evaluate_chat_files(model, tokenizer, "a model", [str(file)], GREEDY, tmp_path / "out", limit=4)
    shown = capsys.readouterr().out
    assert "Beside the given answers" in shown and "ROUGE-L" in shown and "Written: " in shown
    values = json.loads((tmp_path / "out" / "chat_report.json").read_text("utf-8"))
    assert values["total"]["answers"] == 4 and values["model"]["family"] == "mmrec"
    assert "a model" in json.dumps(values["model"])
    assert [answer["place"] for answer in values["answers"]] == [f"{file}:{n}" for n in range(1, 5)]
    assert (tmp_path / "out" / "chat_report.html").is_file()
    file.write_text('{"messages": [{"role": "user", "content": "Ne?"}]}\n', encoding="utf-8")
    with pytest.raises(DataError, match=f"(?s)mmrec data convert.*{file.name}:1"):
        evaluate_chat_files(model, tokenizer, "a model", [str(file)], GREEDY, None)
    with pytest.raises(ConfigError, match="--judge-model"):
        evaluate_chat_files(model, tokenizer, "a model", [str(file)], GREEDY, None, judge_url="http://x/v1")
