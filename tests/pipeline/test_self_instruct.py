"""Growing an instruction set, against a small server on this machine that answers as OpenAI's with scripted texts."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from mm_rec.cli.data_self_instruct import self_instruct
from mm_rec.data.conversations.dataset_reader import read_conversations
from mm_rec.errors import ConfigError, DataError
from mm_rec.pipeline.self_instruct.endpoint import ChatEndpoint
from mm_rec.pipeline.self_instruct.filters import SimilarityFilter, reject_answer, reject_task
from mm_rec.pipeline.self_instruct.generate import SelfInstructConfig, SelfInstructStats, run_self_instruct
from mm_rec.pipeline.self_instruct.prompts import answer_prompt, read_answer, read_tasks, tasks_prompt
from mm_rec.pipeline.self_instruct.task_pool import PoolTask, read_pool, read_seeds
from mm_rec.terminal import run_app

KEY = "sk-test-0123456789"
SEEDS = [
    PoolTask(f"seed-{number}", task)
    for number, task in enumerate(
        [
            "Türkiye'nin en uzun nehri hangisidir?",
            "Verilen metni iki cümleyle özetle.",
            "Sağlıklı bir kahvaltı için üç öneri yaz.",
            "Bir arkadaşını doğum gününe davet eden kısa bir mesaj yaz.",
            "Verilen sayıların ortalamasını bul.",
            "Güneş tutulması nasıl olur, çocuklara anlat.",
            "Verilen cümledeki yazım yanlışlarını düzelt.",
        ]
    )
]
# One list of a model's: three good tasks and one for each way of being dropped before its answer is asked for.
TASKS = """Elbette, işte yeni görevler:

9. Yağmurun nasıl oluştuğunu kısaca açıkla.
10. **Verilen meyveleri renklerine göre grupla.**
11. Türkiye'nin en uzun nehri hangisidir?
12. Verilen metni iki kısa cümleyle özetle.
13. Bir kedinin resmini çiz ve video olarak anlat.
14. Write a short poem about the sea and the sky.
15. Şiir yaz.
16. Deniz kıyısında geçen kısa bir öykü yaz.

Başka bir şey ister misiniz?"""
ANSWERS = {
    "Yağmurun": "Girdi: yok\nYanıt: Su buharlaşır, bulutlarda yoğuşur ve yağmur olarak yere düşer.",
    "meyveleri": "**Girdi:** elma, muz, çilek\n**Yanıt:** Kırmızı: elma, çilek\nSarı: muz",
    "öykü": "Girdi: yok\nYanıt: Ayşe her sabah deniz kıyısına iner, dalgaların sesini dinlerdi.",
}
MORE_TASKS = "1. İyi bir uyku için dört öneri sırala.\n2. Kışın neden daha çok üşüdüğümüzü anlat."
MORE_ANSWERS = {
    "uyku": "Girdi: yok\nYanıt: 1. Erken yat\n2. Odanı havalandır\n3. Kahve içme\n4. Telefonu kapat",
    "üşüdüğümüzü": "Girdi: yok\nYanıt: Çünkü vücudumuz soğuk havada daha hızlı ısı yitirir.",
}


class SmallServer(http.server.ThreadingHTTPServer):
    """Answers requests for tasks with its lists in their order, requests for an answer by a word of the task.

    A reply is a text, or a text and its finish reason; a failure is a status, headers and a body, and comes first.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.lists: list[Any] = [TASKS, MORE_TASKS]
        self.answers: dict[str, Any] = {**ANSWERS, **MORE_ANSWERS}
        self.failures: list[tuple[int, dict[str, str], str]] = []
        self.keys: set[str] = set()
        self.prompts: list[str] = []
        self.lock = threading.Lock()

    def reply(self, prompt: str) -> tuple[str, str]:
        asked = re.search(r"\n(?:Görev|Task): (.*)\n\Z", prompt)
        if asked is None:
            found = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        else:
            found = next(answer for word, answer in self.answers.items() if word in asked[1])
        return found if isinstance(found, tuple) else (found, "stop")

    @property
    def list_prompts(self) -> list[str]:
        return [
            prompt for prompt in self.prompts if "numaralı bir liste" in prompt or "numbered list" in prompt
        ]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: SmallServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.keys.add(self.headers["Authorization"])
            if self.server.failures:
                self._send(*self.server.failures.pop(0))
                return
            prompt = body["messages"][0]["content"]
            self.server.prompts.append(prompt)
            text, reason = self.server.reply(prompt)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        completion = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        self._send(200, {}, json.dumps(completion))

    def _send(self, status: int, headers: dict[str, str], text: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with SmallServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def grow_from(server: SmallServer, out: Path, count: int, **options: Any) -> SelfInstructStats:
    endpoint = ChatEndpoint(server.url, "small")
    return run_self_instruct(
        options.pop("seeds", SEEDS), endpoint, SelfInstructConfig(out=out, count=count, **options)
    )


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def asked(path: Path) -> list[str]:
    return [row["messages"][0]["content"] for row in rows(path)]


def test_good_tasks_are_kept_and_the_others_counted_by_reason(server: SmallServer, tmp_path: Path) -> None:
    out = tmp_path / "grown.jsonl"
    stats = grow_from(server, out, 3, keep_dropped=True)
    assert (stats.rows, stats.earlier) == (3, 0)
    assert asked(out) == [
        "Yağmurun nasıl oluştuğunu kısaca açıkla.",
        "Verilen meyveleri renklerine göre grupla.\n\nelma, muz, çilek",
        "Deniz kıyısında geçen kısa bir öykü yaz.",
    ]
    assert rows(out)[1]["messages"][1] == {"role": "assistant", "content": "Kırmızı: elma, çilek\nSarı: muz"}
    expected = {
        "duplicate": "Türkiye'nin en uzun nehri hangisidir?",
        "similar": "Verilen metni iki kısa cümleyle özetle.",
        "not text alone": "Bir kedinin resmini çiz ve video olarak anlat.",
        "other language": "Write a short poem about the sea and the sky.",
        "too short": "Şiir yaz.",
    }
    assert stats.dropped == dict.fromkeys(expected, 1)
    assert {row["reason"]: row["task"] for row in rows(tmp_path / "grown.dropped.jsonl")} == expected


def test_answers_that_will_not_do_are_counted_and_a_model_without_good_ones_is_given_up(
    server: SmallServer, tmp_path: Path
) -> None:
    server.answers = {
        "Yağmurun": "Su buharlaşır, sonra yağmur olur.",
        "meyveleri": ("Girdi: elma, muz\nYanıt: Kırmızı olanlar", "length"),
        "öykü": "Girdi: yok\nYanıt:  …",
        "uyku": "Girdi: yok\nYanıt: İyi bir uyku için dört öneri sırala!",
        "üşüdüğümüzü": "Girdi: yok\nYanıt: Because the air is cold and the body loses its heat.",
    }
    out = tmp_path / "grown.jsonl"
    with pytest.raises(DataError, match="10 rounds in a row gave nothing to keep; the file has 0") as raised:
        grow_from(server, out, 5, keep_dropped=True)
    assert "duplicate" in str(raised.value)
    assert not out.exists()
    reasons = [
        row["reason"] for row in rows(tmp_path / "grown.dropped.jsonl") if row["reason"] != "duplicate"
    ]
    for reason in ("unreadable", "cut off", "empty answer", "answer repeats"):
        assert reasons.count(reason) == 1, reason
    assert reasons.count("other language") == 2  # the poem among the tasks, and the answer
    assert len(server.list_prompts) == 10
    assert len(server.prompts) == 10 + 5  # an answer is asked for once


def test_lists_that_cannot_be_read_are_counted(server: SmallServer, tmp_path: Path) -> None:
    cut_off = ("1. İyi bir uyku için dört öneri sırala.\n2. Kışın neden daha", "length")
    server.lists = ['{"tasks": ["Bir şiir', "", cut_off]
    stats = grow_from(server, tmp_path / "grown.jsonl", 1)
    assert stats.dropped == {"unreadable": 2, "cut off": 1}


def test_every_row_says_where_it_came_from_and_the_key_is_nowhere(
    server: SmallServer, tmp_path: Path
) -> None:
    out = tmp_path / "grown.jsonl"
    grow_from(server, out, 5, keep_dropped=True)
    kept = {f"generated-{number}" for number in (1, 2, 3)}
    for number, row in enumerate(rows(out), start=1):
        metadata = row["metadata"]
        assert metadata["source"] == "self-instruct" and metadata["id"] == f"generated-{number}"
        assert (metadata["endpoint"], metadata["model"]) == (server.url, "small")
        assert metadata["language"] == "tr" and metadata["round"] == (1 if number <= 3 else 2)
        prompt = server.list_prompts[metadata["round"] - 1]
        assert metadata["prompt_sha256"] == hashlib.sha256(prompt.encode()).hexdigest()
        from_seeds = set(metadata["seeds"]) & {seed.id for seed in SEEDS}
        assert len(from_seeds) == 6
        assert set(metadata["seeds"]) - from_seeds < kept
        assert len(metadata["seeds"]) == (6 if metadata["round"] == 1 else 8)
    assert server.keys == {f"Bearer {KEY}"}
    assert not any(KEY in path.read_text(encoding="utf-8") for path in tmp_path.iterdir())


def test_what_is_written_is_read_as_conversations(server: SmallServer, tmp_path: Path) -> None:
    out = tmp_path / "grown.jsonl"
    grow_from(server, out, 5)
    found = read_conversations([out])
    assert not found.issues
    assert [[message.role for message in one.messages] for one in found.conversations] == [
        ["user", "assistant"]
    ] * 5
    assert found.conversations[4].metadata["id"] == "generated-5"
    assert [seed.id for seed in read_seeds([out])] == [f"generated-{number}" for number in range(1, 6)]


def test_a_second_call_goes_on_without_duplicates(server: SmallServer, tmp_path: Path) -> None:
    out = tmp_path / "grown.jsonl"
    assert grow_from(server, out, 2).rows == 2
    first = out.read_bytes()
    server.lists = [TASKS, MORE_TASKS]
    stats = grow_from(server, out, 5)
    assert (stats.rows, stats.earlier) == (5, 2)
    assert stats.dropped["duplicate"] == 1 + 2  # what the first call kept is known to the second
    assert out.read_bytes().startswith(first)
    assert len(set(asked(out))) == 5
    assert [row["metadata"]["round"] for row in rows(out)] == [1, 1, 2, 3, 3]
    prompts = len(server.prompts)
    assert grow_from(server, out, 5).rows == 5
    assert len(server.prompts) == prompts  # nothing to do, nothing asked


def test_a_row_cut_short_by_a_kill_is_taken_off(server: SmallServer, tmp_path: Path) -> None:
    out = tmp_path / "grown.jsonl"
    grow_from(server, out, 3)
    whole = out.read_bytes()
    out.write_bytes(whole[:-40])
    assert [example.id for example in read_pool(out)[0]] == ["generated-1", "generated-2"]
    assert out.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    assert grow_from(server, out, 4).rows == 4
    assert [row["metadata"]["id"] for row in rows(out)] == [f"generated-{number}" for number in range(1, 5)]


@pytest.mark.parametrize("text", ['{"messages": []}\n', '{"messages": []}', "Merhaba"])
def test_a_file_of_somebody_else_is_left_alone(text: str, tmp_path: Path) -> None:
    out = tmp_path / "mine.jsonl"
    out.write_text(text)
    with pytest.raises(DataError, match=r"mine\.jsonl:1: self-instruct did not write this row"):
        read_pool(out)
    assert out.read_text() == text


def test_limits_and_failures_of_the_server_are_waited_for(server: SmallServer, tmp_path: Path) -> None:
    soon = {"retry-after-ms": "10"}
    server.failures = [(429, soon, "{}"), (500, soon, "broken"), (503, soon, "{}")]
    assert grow_from(server, tmp_path / "grown.jsonl", 3).rows == 3
    assert not server.failures


def test_tries_are_bounded(server: SmallServer) -> None:
    server.failures = [(500, {"retry-after-ms": "1"}, "no memory left")] * 20
    with pytest.raises(
        DataError, match=r"the server failed \(500\), also after 6 more tries: no memory left"
    ):
        ChatEndpoint(server.url, "small").ask("?")
    assert len(server.failures) == 20 - 7


def test_errors_of_an_endpoint_say_what_to_change(
    server: SmallServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def error(status: int, text: str = "", **headers: str) -> str:
        server.failures = [(status, {name.replace("_", "-"): value for name, value in headers.items()}, text)]
        with pytest.raises((ConfigError, DataError)) as raised:
            grow_from(server, tmp_path / "grown.jsonl", 1)
        assert KEY not in str(raised.value)
        return str(raised.value)

    refused = error(401, f'{{"error": {{"message": "wrong key {KEY}"}}}}')
    assert "OPENAI_API_KEY holds a key that was refused" in refused and "--api-key-env" in refused
    assert f"{server.url} has no model 'small', or is not the URL of an API (404)" in error(404)
    assert "does not let this key use 'small' (403): not for …" in error(
        403, f'{{"error": {{"message": "not for {KEY}."}}}}'
    )
    assert "refuses the request for 'small' (400): too long" in error(400, '{"message": "too long"}')
    assert "Try again in 3600 seconds" in error(429, retry_after="3600")
    for text, kind in (
        ("<html>", "text/html"),
        ('{"choices":', "application/json"),
        ("{}", "application/json"),
    ):
        assert "is not a chat completion" in error(200, text, content_type=kind)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert "the environment variable OPENAI_API_KEY is not set" in error(401)
    assert not list(tmp_path.iterdir())


def test_nothing_at_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mm_rec.pipeline.self_instruct.endpoint._RETRIES", 0)
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:9/v1: nothing answers there"):
        ChatEndpoint("http://127.0.0.1:9/v1", "small").ask("?")


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://a/v1", "https://me:pass@a/v1", "https://a/v1?key=1"]
)
def test_a_url_that_cannot_be_used_or_holds_a_secret_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="--endpoint"):
        ChatEndpoint(url, "small")


def test_thinking_and_half_an_emoji_are_left_out_of_a_reply(server: SmallServer) -> None:
    server.lists = ["<think>Ne yazsam?</think>\n1. Bir fıkra anlat. \ud83d"]
    assert ChatEndpoint(server.url, "small").ask("numaralı").text == "1. Bir fıkra anlat."


@pytest.mark.parametrize("code", ["tr", "en"])
def test_prompts_are_filled_and_number_the_new_tasks_on(code: str) -> None:
    prompt = tasks_prompt(code, ["Bir {x} yaz.", "İki\nsatır."], 8)
    assert "\n1. Bir {x} yaz.\n2. İki satır.\n" in prompt
    assert re.search(r"\b3\b.*\b10\b", prompt.splitlines()[-1])
    assert answer_prompt(code, "{task}").endswith(": {task}\n")


def test_lists_of_several_kinds_are_read() -> None:
    reply = "Tabii:\n1. Bir.\n  devamı\n2) **İki.**\n\n**Görev 3:** Üç.\n4. \n  5: Beş 1.5 kat.\n\nBaşka?"
    assert read_tasks("tr", reply) == ["Bir.\n  devamı", "İki.", "Üç.", "Beş 1.5 kat."]
    assert read_tasks("en", "I cannot do that.") == []


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Input: none\nAnswer: Yes.", ("", "Yes.")),
        ("\n**Input:** a\nb\n\n**Answer:**\n1. x\n2. y\n", ("a\nb", "1. x\n2. y")),
        ("Input: <none>\nAnswer: The answer: 4.", ("", "The answer: 4.")),
        ("Input:\nAnswer: Yes.", ("", "Yes.")),
        ("Yes.", None),
        ("Answer: Yes.", None),
        ("Input: none", None),
        ('{"input": "", "answer": "Yes', None),
        ("Input: none\nAnswer: Yes.\n\nTask: Another.\nInput: none\nAnswer: No.", None),
    ],
)
def test_answers_are_read_only_in_their_form(reply: str, expected: tuple[str, str] | None) -> None:
    assert read_answer("en", reply) == expected


@pytest.mark.parametrize(
    ("task", "code", "reason"),
    [
        ("İki şiir.", "tr", "too short"),
        ("çok " * 151, "tr", "too long"),
        ("Bu GÖRSELDE ne var, anlat.", "tr", "not text alone"),
        ("Describe the attached pictures.", "en", "not text alone"),
        ("Explain how photosynthesis works in plants.", "en", None),
        ("Resmi bir dilekçe yaz.", "tr", None),
        ("Explain what the fall of an empire is.", "tr", "other language"),
        ("Bana bir masal anlat.", "tr", None),  # without a letter that is Turkish alone
        ("Bana bir masal anlat.", "en", "other language"),
        ("Tell me about the life of Recep Tayyip Erdoğan.", "en", None),
    ],
)
def test_faults_of_tasks(task: str, code: str, reason: str | None) -> None:
    rejection = reject_task(task, code)
    assert (rejection.reason if rejection else None) == reason


LONG = "word " * 12


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Paris", None),
        ("Roses are red,\nviolets are blue", None),
        (f"- {LONG}\n- {LONG}", None),
        (f"{LONG}done (as it says).", None),
        (f"{LONG}and so", "unfinished answer"),
        ("…", "empty answer"),
        ("NAME the capital of France!", "answer repeats"),
        ("The  given text.", "answer repeats"),
        ("The given text!", None),
        ("Fransa'nın başkenti Paris için çok şey söylenir.", "other language"),
    ],
)
def test_faults_of_answers(answer: str, reason: str | None) -> None:
    rejection = reject_answer("Name the capital of France.", "The given text.", answer, "en")
    assert (rejection.reason if rejection else None) == reason


def test_novelty_compares_small_letters_as_the_language_has_them() -> None:
    novelty = SimilarityFilter("tr", 0.7)
    novelty.add("IŞIK NASIL YAYILIR, AÇIKLA")
    duplicate = novelty.reject("Işık nasıl yayılır? Açıkla.")
    assert duplicate is not None and duplicate.reason == "duplicate"
    similar = novelty.reject("Işık suda nasıl yayılır, açıkla.")
    assert similar is not None and similar.detail == "ROUGE-L 0.89: IŞIK NASIL YAYILIR, AÇIKLA"
    assert novelty.reject("Işık kaynaklarını say.") is None


def test_good_real_text_is_not_taken_for_another_language(real_data: Callable[[str], Path]) -> None:
    pairs = json.loads(real_data("instruct/tr_nutuk_qa_600.json").read_text(encoding="utf-8"))
    texts = [pair[field] for pair in pairs for field in ("question", "answer")]
    faults = [reject_task(text, "tr") for text in texts]
    assert len(texts) == 1200
    assert not [rejection for rejection in faults if rejection and rejection.reason == "other language"]


def test_the_papers_own_seeds(real_data: Callable[[str], Path]) -> None:
    path = real_data("instruct/self_instruct_seed_tasks.jsonl")
    seeds = read_seeds([path])
    instructions = {row["instruction"].strip().split("\n\n")[0] for row in rows(path)}
    assert {seed.task for seed in seeds} <= instructions and len(seeds) >= 170
    assert seeds[0].id == "seed_task_0"


def test_seeds_with_problems_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "seeds.jsonl"
    path.write_text('{"instruction": "Bir fıkra anlat.", "output": "Temel"}\n{"instruction": \n')
    with pytest.raises(DataError, match=r"seeds\.jsonl:2"):
        read_seeds([path])


def run(*arguments: object) -> int:
    app = typer.Typer()
    app.command()(self_instruct)
    return run_app(app, "mmrec data self-instruct", [str(argument) for argument in arguments])


def test_the_command(server: SmallServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds, out = tmp_path / "seeds.jsonl", tmp_path / "grown.jsonl"
    lines = [json.dumps({"instruction": seed.task, "output": "…"}, ensure_ascii=False) for seed in SEEDS]
    seeds.write_text("\n".join(lines), encoding="utf-8")
    options = ["--out", out, "--endpoint", server.url, "--model", "small", "--keep-dropped"]
    assert run(seeds, *options, "--count", 3) == 0
    told = capsys.readouterr().out
    assert f"{out}: 3 rows, 3 of them new" in told and "1 not text alone" in told
    assert run(seeds, *options, "--count", 5) == 0
    assert f"{out}: 5 rows, 2 of them new" in capsys.readouterr().out
    server.failures = [(401, {}, "{}")]
    assert run(seeds, *options, "--count", 6) == 2
    assert "OPENAI_API_KEY" in capsys.readouterr().err
    assert len(rows(out)) == 5
