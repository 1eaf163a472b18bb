"""The chat page at / in a real browser: on a real server, and on hand-written answers in odd pieces."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import waiting
from playwright.sync_api import Browser, Locator, Page, expect
from serving.server import Server, small_model
from transformers import PreTrainedTokenizerBase

from mm_rec.data.conversations.dataset_reader import read_conversations
from mm_rec.serving.access import AccessPolicy
from mm_rec.serving.api_keys import create_key
from mm_rec.serving.context import RequestLimits

FILE = Path(__file__).parents[2] / "mm_rec" / "serving" / "page.html"
CHAT = "**/v1/chat/completions"
EVIL = "<script>document.title = 'x'</script><img src=x onerror=\"document.title = 'y'\">"
Asked = list[dict[str, Any]]


class Visit:
    """A page that is open; what it asked for, and all that a browser would complain of."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.asked: Asked = []
        self.faults: list[str] = []
        self.page.on("request", lambda request: self._note(request.url, request.post_data, url))
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.goto(url)

    def _note(self, address: str, body: str | None, url: str) -> None:
        if not address.startswith((url, "data:", "blob:")):
            self.faults.append(f"asked elsewhere: {address}")
        if body is not None:
            self.asked.append(json.loads(body))

    @property
    def answers(self) -> Locator:
        return self.page.locator("article.assistant .text")

    def say(self, text: str) -> None:
        """Send a message, and wait until all that comes of it is there."""
        self.page.get_by_label("Your message").fill(text)
        self.page.keyboard.press("Enter")
        self.wait()

    def wait(self) -> None:
        expect(self.page.locator("#stop")).to_be_hidden()


@pytest.fixture
def visit(browser: Browser) -> Callable[..., Visit]:
    return lambda url, **options: Visit(browser, url, **({"locale": "en-GB"} | options))


@pytest.fixture(scope="module")
def endless(
    chat_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server whose answers never end by themselves."""
    model = small_model("mmrec", chat_tokenizer)
    model.stop_ids = frozenset()
    running = Server([model], tmp_path_factory.mktemp("endless"), limits=RequestLimits(max_tokens=1_000_000))
    yield running
    running.stop()


class Scripted:
    """Serves the page as `server` does; `answers` are the statuses and bodies of its chat completions, in turn.

    A body is sent in pieces; None among them breaks the connection off.
    """

    def __init__(self, server: Server) -> None:
        self.answers: list[tuple[int, Sequence[bytes | None]]] = []
        shown = httpx.get(server.url)
        policy, listed = (
            shown.headers["content-security-policy"],
            httpx.get(f"{server.url}/v1/models").content,
        )
        answers = self.answers

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._begin(200, {"Content-Security-Policy": policy})
                self.wfile.write(shown.content if self.path == "/" else listed)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                status, pieces = answers.pop(0)
                self._begin(status, {"Content-Length": "1000000"} if None in pieces else {})
                for piece in pieces:
                    if piece is None:
                        return
                    self.wfile.write(piece)
                    time.sleep(0.0003)

            def _begin(self, status: int, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def scripted(server: Server) -> Iterator[Scripted]:
    running = Scripted(server)
    yield running
    running.stop()


def events(*texts: str, end: str = "\n", tokens: int = 7) -> bytes:
    """The answer to a chat completion as a stream."""
    deltas = [{"choices": [{"delta": {"content": text}, "finish_reason": None}]} for text in texts]
    last = [
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"completion_tokens": tokens}},
    ]
    rows = [json.dumps(row, ensure_ascii=False) for row in [*deltas, *last]]
    return "".join(f": comment{end}data: {row}{end}{end}" for row in [*rows, "[DONE]"]).encode()


def bytewise(data: bytes) -> list[bytes]:
    return [data[place : place + 1] for place in range(len(data))]


def until(page: Page, condition: str) -> None:
    """Wait for what the page's own rules do not let it evaluate."""
    waiting.until(lambda: page.evaluate(condition))


def at_end(page: Page) -> bool:
    return bool(page.evaluate("talk.scrollHeight - talk.scrollTop - talk.clientHeight < 40"))


def test_the_file_is_one_script_and_no_outside_address() -> None:
    page = FILE.read_text("utf-8")
    assert page.count("<script") == page.count("</script") == page.count("<script>") == 1
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)[^\s\"']+", page) == []
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|\son\w+=", page)


def test_an_answer_comes_and_a_reload_keeps_the_conversation(
    server: Server, visit: Callable[..., Visit]
) -> None:
    at = visit(server.url)
    page, message = at.page, at.page.get_by_label("Your message")
    expect(page.locator("#model option")).to_have_text(["mmrec", "llama"])  # no alias
    message.fill("One,")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two? " + EVIL)
    page.keyboard.press("Enter")
    at.wait()
    assert at.asked == [
        {
            "model": "mmrec",
            "messages": [{"role": "user", "content": "One,\ntwo? " + EVIL}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "truncation": "auto",
            "temperature": 0.7,
        }
    ]
    expect(at.answers).to_have_text(re.compile(r"\S"))
    expect(page.locator(".figures")).to_have_text(re.compile(r"^\d+ tokens · .*first after [\d.]+ s"))
    expect(page.locator("article.user")).to_have_text("One,\ntwo? " + EVIL)
    said, figures = at.answers.inner_text(), page.locator(".figures").inner_text()
    message.fill("not sent yet")
    page.reload()
    expect(page.locator("article.user")).to_have_text("One,\ntwo? " + EVIL)
    assert at.answers.inner_text() == said and page.locator(".figures").inner_text() == figures
    expect(message).to_have_value("not sent yet")
    page.locator("#model").select_option("llama")
    at.say("More?")
    assert [one["role"] for one in at.asked[1]["messages"]] == ["user", "assistant", "user"]
    assert at.asked[1]["model"] == "llama" and at.asked[1]["max_tokens"] == 128  # a quarter of its context
    assert page.title() == "MM-Rec" and at.faults == []


def test_stop_keeps_what_came_and_ends_the_work(endless: Server, visit: Callable[..., Visit]) -> None:
    at = visit(endless.url)
    at.page.get_by_label("Your message").fill("Go on for ever.")
    at.page.get_by_role("button", name="Send").click()
    live = at.page.locator(".text[aria-live=polite][aria-busy=true]")
    expect(live).to_have_text(re.compile(r"[\s\S]{200}"))
    length = len(live.inner_text())
    expect(live).to_have_text(re.compile(rf"[\s\S]{{{length + 100}}}"))  # it grows: it is shown as it comes
    at.page.get_by_role("button", name="Stop").click()
    at.wait()
    expect(at.answers).to_have_attribute("aria-busy", "false")
    expect(at.page.locator(".figures")).to_have_text(re.compile("first after .* · stopped"))
    said = at.answers.inner_text()
    assert len(said) > length
    at.page.reload()
    assert at.answers.inner_text() == said
    scheduler = endless.context.registry.models[0].scheduler
    waiting.until(lambda: scheduler.num_running == 0)
    assert at.faults == []


def test_a_reload_and_another_conversation_keep_what_came(
    endless: Server, visit: Callable[..., Visit]
) -> None:
    at = visit(endless.url)
    for leave in (at.page.reload, at.page.get_by_role("button", name="New chat").click):
        at.page.get_by_label("Your message").fill("Go on.")
        at.page.keyboard.press("Enter")
        expect(at.answers.last).to_have_text(re.compile(r"[\s\S]{100}"))
        leave()
        at.wait()
    expect(at.answers).to_have_count(0)
    at.page.locator("#chats .name").click()
    expect(at.answers).to_have_count(2)
    assert min(len(text) for text in at.answers.all_inner_texts()) >= 100 and at.faults == []


def test_the_view_follows_unless_the_reader_went_up(endless: Server, visit: Callable[..., Visit]) -> None:
    at = visit(endless.url, viewport={"width": 500, "height": 400})
    page, down = at.page, at.page.get_by_role("button", name="To the end")
    page.get_by_label("Your message").fill("Write a lot.")
    page.keyboard.press("Enter")
    until(page, "talk.scrollHeight > 3 * talk.clientHeight")
    assert at_end(page) and down.is_hidden()
    page.mouse.move(200, 200)
    page.mouse.wheel(0, -300)
    expect(down).to_be_visible()
    place, height = page.evaluate("[talk.scrollTop, talk.scrollHeight]")
    until(page, f"talk.scrollHeight > {height} + 200")
    assert page.evaluate("talk.scrollTop") <= place
    down.click()
    until(page, f"talk.scrollHeight > {height} + 600")
    assert at_end(page)
    page.get_by_role("button", name="Stop").click()
    at.wait()


def test_another_answer_takes_the_place_of_the_last(server: Server, visit: Callable[..., Visit]) -> None:
    at = visit(server.url)
    again = at.page.get_by_role("button", name="Regenerate")
    at.say("Tell me.")
    first = at.answers.inner_text()
    again.click()
    at.wait()
    expect(at.answers).to_have_count(1)
    second = at.answers.inner_text()
    assert second != first and at.asked[0] == at.asked[1]
    at.page.route(CHAT, lambda route: route.abort())
    again.click()
    expect(at.page.get_by_role("alert").first).to_have_text(
        "The connection to the server is lost. Is it running?"
    )
    assert at.answers.inner_text() == second  # an answer goes only when there is a better one
    at.page.unroute(CHAT)
    at.page.get_by_role("button", name="Retry").click()
    at.wait()
    expect(at.page.get_by_role("alert").first).to_be_hidden()
    assert at.answers.inner_text() != second
    assert len(at.faults) == 1 and "ERR_FAILED" in at.faults[0]  # the browser's own word about abort()


def test_conversations_are_listed_exported_and_deleted(
    server: Server, visit: Callable[..., Visit], tmp_path: Path
) -> None:
    at = visit(server.url)
    page = at.page
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System message of this conversation").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.3")
    page.get_by_label("Max. tokens").fill("12")
    page.get_by_role("button", name="Done").click()
    at.say("First?")
    assert at.asked[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (at.asked[0]["temperature"], at.asked[0]["max_tokens"]) == (0.3, 12)
    page.get_by_role("button", name="New chat").click()
    expect(page.get_by_role("heading", name="What would you like to ask?")).to_be_visible()
    at.say("Second?")
    page.route(CHAT, lambda route: route.abort())
    at.say("Not answered?")
    names = page.locator("#chats .name")
    expect(names).to_have_text(["Second?", "First?"])
    with page.expect_download() as download:
        page.get_by_role("button", name="Export (JSONL)").click()
    download.value.save_as(tmp_path / "chats.jsonl")
    found = read_conversations([str(tmp_path / "chats.jsonl")])
    assert found.issues == [] and len(found.conversations) == 2
    second, first = found.conversations
    assert (
        [one.role for one in second.messages]
        == [one.role for one in first.messages]
        == ["system", "user", "assistant"]
    )
    assert first.messages[1].content == "First?" and second.messages[0].content == "Be brief."
    names.nth(1).click()
    expect(page.locator("article.user")).to_have_text("First?")
    expect(names.nth(1)).to_have_attribute("aria-current", "true")
    page.get_by_role("button", name="Delete: First?").click()
    expect(names).to_have_text(["Second?"])
    page.reload()
    expect(names).to_have_text(["Second?"])
    assert len(at.faults) == 1  # the request that was aborted


def test_text_is_never_markup_and_is_read_across_all_borders(
    scripted: Scripted, visit: Callable[..., Visit]
) -> None:
    at = visit(scripted.url, permissions=["clipboard-read", "clipboard-write"])
    code = f"if a < b:\n    print('ığüşöçİ 🙂')\n{EVIL}"
    for end in ("\n", "\r\n"):
        texts = ["Önce:\n\n``", f"`python\n{code}", "\n``", f"`\nSonra {EVIL} *yıldız*\n\n```\nopen"]
        scripted.answers.append((200, bytewise(events(*texts, end=end))))
        at.say("?")
        said = at.answers.last
        expect(said.locator("p")).to_have_text(["Önce:", f"Sonra {EVIL} *yıldız*"])
        assert said.locator("pre").all_inner_texts() == [code, "open"]
        expect(said.locator(".code header span")).to_have_text(["python", "code"])
    expect(at.page.locator(".figures").last).to_have_text(
        re.compile(r"^7 tokens · [\d.]+ tokens/s · first after [\d.]+ s$")
    )
    at.page.get_by_role("button", name="Copy").last.click()
    expect(at.page.get_by_role("button", name="Copied")).to_be_visible()
    assert at.page.evaluate("navigator.clipboard.readText()") == "open"
    at.page.reload()
    assert at.page.locator("article img, article script").count() == 0
    assert at.page.locator("pre").count() == 4 and at.page.title() == "MM-Rec" and at.faults == []


def test_what_went_wrong_is_said_and_can_be_tried_again(
    scripted: Scripted, visit: Callable[..., Visit]
) -> None:
    busy = json.dumps(
        {"error": {"message": "64 requests wait already: ask again later", "code": "queue_full"}}
    )
    failed = b'data: {"error": {"message": "the server is stopping"}}\n\n'
    begun = events("Half of")[:-60].rpartition(b"data: ")[0]
    scripted.answers += [
        (429, [busy.encode()]),
        (502, [b"<html>Bad gateway</html>"]),
        (200, [begun, failed]),
        (200, [begun, None]),
        (200, [begun]),
        (200, [events("", " \n")]),
        (200, [events("All of it.")]),
    ]
    lost = "The connection to the server is lost. Is it running?"
    at = visit(scripted.url)
    wrong, retry = at.page.locator("#wrong"), at.page.get_by_role("button", name="Retry")
    at.say("Well?")
    for message, shown in (
        ("64 requests wait already: ask again later", []),
        ("502 Bad Gateway", []),
        ("the server is stopping", ["Half of"]),
        (lost, ["Half of"]),
        (lost, ["Half of"]),
        ("The model answered with nothing.", ["Half of"]),
    ):
        expect(wrong).to_have_text(message)
        expect(at.answers).to_have_text(shown)
        retry.click()
        at.wait()
    expect(at.answers).to_have_text(["All of it."])
    expect(wrong).to_be_hidden()
    scripted.stop()
    at.say("And now?")
    expect(wrong).to_have_text(lost)


def test_a_refused_message_can_be_mended(server: Server, visit: Callable[..., Visit]) -> None:
    at = visit(server.url)
    at.say("What is <|user|>?")
    expect(at.page.locator("#wrong")).to_have_text(re.compile(r"^messages\[0\]\.content: .*<\|user\|>"))
    at.page.get_by_role("button", name="Edit message").click()
    expect(at.page.get_by_label("Your message")).to_have_value("What is <|user|>?")
    expect(at.page.locator("article, #chats li")).to_have_count(0)
    at.say("What is a user?")
    expect(at.answers).to_have_count(1)
    assert at.asked[1]["messages"] == [{"role": "user", "content": "What is a user?"}]


def test_messages_after_one_without_an_answer_are_one_message(
    server: Server, visit: Callable[..., Visit]
) -> None:
    at = visit(server.url)
    at.page.route(CHAT, lambda route: route.abort())
    at.say("One.")
    at.page.unroute(CHAT)
    at.say("Two.")
    assert at.asked[1]["messages"] == [{"role": "user", "content": "One.\n\nTwo."}]
    expect(at.answers).to_have_count(1)


def test_a_full_storage_is_said(server: Server, visit: Callable[..., Visit]) -> None:
    at = visit(server.url)
    at.page.evaluate(
        "for (let n = 2 ** 22; n; n >>= 1) try { localStorage.setItem(`x${n}`, 'x'.repeat(n)) } catch {}"
    )
    at.say("Is there room?")
    expect(at.page.get_by_text("The browser's storage is full")).to_be_visible()
    expect(at.answers).to_have_count(1)
    at.page.evaluate("localStorage.clear()")
    at.say("And now?")
    expect(at.page.get_by_text("The browser's storage is full")).to_be_hidden()


def test_a_key_is_asked_for_and_kept_for_this_visit_alone(
    chat_tokenizer: PreTrainedTokenizerBase, visit: Callable[..., Visit], tmp_path: Path
) -> None:
    server = Server([small_model("mmrec", chat_tokenizer)], tmp_path, policy=AccessPolicy(require_keys=True))
    try:
        text, _ = create_key(server.context.store, "page")
        at = visit(server.url)
        field = at.page.get_by_label("API key")
        expect(field).to_be_focused()
        expect(at.page.get_by_text("this server needs an API key")).to_be_visible()
        field.fill("wrong")
        at.page.keyboard.press("Enter")
        expect(field).to_have_value("")
        expect(field).to_be_focused()
        at.say("May I?")
        expect(at.page.locator("#wrong")).to_have_text(re.compile("^this API key is unknown"))
        field.fill(text)
        at.page.get_by_role("button", name="Use").click()
        expect(field).to_be_hidden()
        at.page.get_by_role("button", name="Retry").click()
        at.wait()
        expect(at.answers).to_have_count(1)
        at.page.reload()
        expect(at.page.locator("#model option")).to_have_count(1)
        expect(field).to_be_hidden()
        assert text not in json.dumps(at.page.evaluate("({...localStorage})"))
        other = at.context.new_page()
        other.goto(server.url)
        expect(other.get_by_label("API key")).to_be_visible()
    finally:
        server.stop()


def test_two_tabs_do_not_undo_each_other(server: Server, visit: Callable[..., Visit]) -> None:
    at = visit(server.url)
    at.say("Here?")
    other = at.context.new_page()
    other.goto(at.page.url)
    other.on("dialog", lambda dialog: dialog.accept())
    at.say("And there?")
    expect(other.locator("article.user")).to_have_text(["Here?", "And there?"])
    other.get_by_role("button", name="Delete: Here?").click()
    expect(at.page.locator("article, #chats li")).to_have_count(0)


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2.2 between two colours, #rgb or #rrggbb."""

    def luminance(colour: str) -> float:
        digits = colour.lstrip("#")
        digits = digits if len(digits) == 6 else "".join(digit * 2 for digit in digits)
        parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_light_and_dark_are_both_legible(server: Server, visit: Callable[..., Visit]) -> None:
    papers = []
    for scheme in ("light", "dark"):
        at = visit(server.url, color_scheme=scheme)
        script = "name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim()"
        colour = {
            name: at.page.evaluate(script, name)
            for name in ("paper", "side", "raised", "ink", "quiet", "own", "accent", "on-accent", "wrong")
        }
        for back in ("paper", "side", "raised", "own"):
            assert (
                contrast(colour["ink"], colour[back]) >= 7 and contrast(colour["quiet"], colour[back]) >= 4.5
            )
        assert contrast(colour["on-accent"], colour["accent"]) >= 4.5
        assert (
            contrast(colour["wrong"], colour["paper"]) >= 4.5
            and contrast(colour["accent"], colour["raised"]) >= 3
        )
        papers.append(at.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert papers == ["rgb(251, 250, 248)", "rgb(24, 25, 23)"]


def test_a_phone_in_turkish(scripted: Scripted, visit: Callable[..., Visit]) -> None:
    at = visit(
        scripted.url, locale="tr-TR", viewport={"width": 320, "height": 568}, is_mobile=True, has_touch=True,
        reduced_motion="reduce",
    )  # fmt: skip
    page = at.page
    assert page.evaluate("document.documentElement.lang") == "tr"
    expect(page.get_by_role("heading", name="Ne sormak istersiniz?")).to_be_visible()
    scripted.answers.append(
        (200, [events("Uzun" * 100 + "\n```\n" + "kod " * 100 + "\n```\nBitti.", tokens=1234)])
    )
    page.get_by_label("Mesajınız").fill("Çok" * 100)
    page.get_by_role("button", name="Gönder").tap()
    expect(page.locator(".figures")).to_have_text(re.compile(r"^1\.234 token · .*ilki \d+(,\d+)? sn sonra$"))
    expect(page.get_by_role("button", name="Yeniden yanıtla")).to_be_in_viewport(ratio=1)
    expect(page.get_by_role("button", name="Gönder")).to_be_in_viewport(ratio=1)
    page.get_by_role("button", name="Sohbetler").tap()
    expect(page.get_by_role("button", name="Yeni sohbet")).to_be_in_viewport(ratio=1)
    check_touch(page)
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Yeni sohbet")).to_be_hidden()
    page.get_by_role("button", name="Ayarlar").tap()
    expect(page.get_by_role("dialog", name="Ayarlar")).to_be_in_viewport(ratio=1)
    check_touch(page)
    page.get_by_role("button", name="Tamam").tap()
    check_touch(page)
    assert at.faults == []


def check_touch(page: Page) -> None:
    """All controls have a name, room for a finger, and a text that a phone does not zoom to; nothing is too wide."""
    assert (
        page.evaluate(
            "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth, visualViewport.width)"
        )
        == 320
    )
    assert page.evaluate("talk.scrollWidth <= talk.clientWidth")
    controls = page.locator("button:visible, input:visible, select:visible, textarea:visible").all()
    assert len(controls) > 5
    for control in controls:
        name, width, height, size = control.evaluate(
            "e => [e.ariaLabel || e.textContent.trim() || e.labels?.[0]?.textContent, e.offsetWidth, e.offsetHeight,"
            " e.matches('button') ? 16 : parseFloat(getComputedStyle(e).fontSize)]"
        )
        assert name and width >= 44 and height >= 44 and size >= 16, (name, width, height, size)


def test_everything_can_be_reached_by_the_keyboard(server: Server, visit: Callable[..., Visit]) -> None:
    at = visit(server.url)
    at.say("Hello?")
    at.page.get_by_label("Your message").fill("More")
    seen = []
    for _ in range(12):
        at.page.keyboard.press("Tab")
        name, is_seen = at.page.evaluate(
            "() => { const e = document.activeElement;"
            " const style = getComputedStyle(e.id === 'message' ? e.parentNode : e);"
            " return e === document.body ? ['', true] : [e.ariaLabel || e.textContent.trim(),"
            " style.outlineStyle !== 'none' || style.boxShadow.includes('0px 0px 0px 1px')] }"
        )
        assert is_seen, f"the focus on {name!r} is not seen"
        seen.append(name)
    wanted = {"New chat", "Hello?", "Delete: Hello?", "Export (JSONL)", "Model", "Settings", "Conversation"}
    assert {*wanted, "Regenerate", "Your message", "Send"} <= set(seen)
