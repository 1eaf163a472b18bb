"""HTML to text: our markup step against trafilatura and resiliparse, on web pages and snippets whose text is known.

    python bench/html_text.py [--quick] [--rounds 3] [--pages 600]

The text is real: Turkish statutes, English web text and news. Pages are built around it as sites build theirs: with
tags of HTML5, with classes of <div>, or old, with tables and without closing tags; with menus, a cookie banner,
scripts, headlines of other articles, a footer; with letters as entities, lists, tables, links and emphasis inside.
Snippets are the same text as plain text and as Markdown, with tags and comparison signs here and there, as they stand
in most files that people clean.

Of each kind are told the share of the text's words that are kept, of its paragraphs that stand whole in a line of
their own, and of the words written that belong to the frame. resiliparse runs in two ways: all text but for elements
without prose, and its search for the main content. trafilatura runs in its fast mode, without further extractors.
"""

from __future__ import annotations

import html
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import protocol
import text_data

KINDS = ("html5", "divs", "old", "plain", "markdown")
PARAGRAPHS = 12  # of a page
WITHOUT_PROSE = [
    *("script", "style", "noscript", "template", "svg", "head", "nav", "footer", "aside"),
    *("button", "select", "iframe", "pre"),
]
MENU = (
    "Ana Sayfa",
    "Haberler",
    "Spor",
    "Künye",
    "Home",
    "World",
    "Sign in",
    "Newsletter",
    "Videos",
    "İletişim",
)
BANNER = "Size daha iyi hizmet verebilmek için çerezler kullanılmaktadır. We value your privacy."
HEADLINES = (
    "Bu haber de ilginizi çekebilir: şehirde yeni köprü açıldı",
    "Ten easy dinners for a busy week",
    "Uzmanlar uyardı: hafta sonu yağmur geliyor",
    "You will not believe what this cat did next",
)
FOOTER = "© 2026 Örnek Yayıncılık. Tüm hakları saklıdır. Terms of use. Contact our newsroom."
SCRIPT = 'var config = {"html": "<p>not text</p>", "n": 1}; if (a < b && c > d) { load("tracker"); }'
OTHER_SIGNS = (" 3<5", " a < b", " x > y", " (p<0.05)")


@dataclass(frozen=True, slots=True)
class Sample:
    """A page or snippet and its paragraphs."""

    markup: str
    paragraphs: list[str]


def paragraphs() -> list[str]:
    """The paragraphs of the texts, from both languages in turn."""
    folder = text_data.folder()
    turkish = text_data.read_texts(folder / "tr" / "laws.jsonl")
    english = [
        line
        for name in ("c4_demo", "onestop_english")
        for text in text_data.read_texts(folder / "en" / f"{name}.jsonl")
        for line in text.split("\n")
    ]
    pairs = zip(turkish, english, strict=False)
    cleaned = (" ".join(text.replace("\ufeff", "").split()) for pair in pairs for text in pair)
    return [text for text in cleaned if len(text) > 40 and not set(text) & set("<>&*_`|#[]\\")]


def samples(kind: str, count: int) -> list[Sample]:
    """The samples of a kind, the same in every process."""
    rng = random.Random(f"html {kind}")
    texts = paragraphs()
    return [_sample(kind, rng, rng.sample(texts, PARAGRAPHS)) for _ in range(count)]


def _sample(kind: str, rng: random.Random, texts: list[str]) -> Sample:
    if kind == "plain":
        texts = [text + rng.choice(OTHER_SIGNS) if rng.random() < 0.2 else text for text in texts]
        return Sample("\n\n".join(texts), texts)
    if kind == "markdown":
        return Sample("\n\n".join(_markdown(rng, text) for text in texts), texts)
    entities = rng.random() < 0.4
    body = "".join(_block(kind, rng, text, entities) for text in texts)
    if kind == "divs" and rng.random() < 0.2:  # as ASP.NET sends its pages
        body = f'<form id="aspnetForm" method="post">{body}</form>'
    return Sample({"html5": _html5, "divs": _divs, "old": _old}[kind](body), texts)


def _markdown(rng: random.Random, text: str) -> str:
    first, _, rest = text.partition(" ")
    shapes = (
        text,
        f"**{first}** {rest}",
        f"[{first}](https://a.b/c) {rest}",
        f"<b>{first}</b> {rest}",
        f"> {text}",
    )
    return rng.choice(shapes) + rng.choice(("", "<br>", "<br />"))


def _block(kind: str, rng: random.Random, text: str, entities: bool) -> str:
    inner = _inline(rng, text, entities)
    shape = rng.random()
    if shape < 0.1:
        return f"<ul>\n<li>{inner}" + ("" if kind == "old" else "</li>") + "\n</ul>\n"
    if shape < 0.15:
        return f"<table><tr><td>{inner}</td></tr></table>\n"
    if shape < 0.2:
        return f"<h2>{inner}</h2>\n"
    if shape < 0.25:
        return f"<blockquote>{inner}</blockquote>\n"
    return f"<p>{inner}\n" if kind == "old" else f'<p class="text">{inner}</p>\n'


def _inline(rng: random.Random, text: str, entities: bool) -> str:
    """The text as HTML, a word of it marked up; `entities`: letters beyond ASCII by name or number."""
    words = [_escape(word, entities) for word in text.split(" ")]
    place = rng.randrange(len(words))
    title = ' title="a > b"' if rng.random() < 0.1 else ""
    opening, closing = rng.choice(
        (("<b>", "</b>"), ("<em>", "</em>"), (f'<a href="/x?a=1&amp;b=2"{title}>', "</a>"), ("", ""))
    )
    words[place] = f"{opening}{words[place]}{closing}"
    return " ".join(words)


def _escape(word: str, entities: bool) -> str:
    escaped = html.escape(word, quote=False)
    if not entities:
        return escaped
    names = html.entities.codepoint2name
    return "".join(
        letter if letter.isascii() else f"&{names.get(ord(letter), f'#{ord(letter)}')};" for letter in escaped
    )


def _head() -> str:
    style = "<style>p { margin: 0 }</style>"
    return f"<head><meta charset=utf-8><title>Örnek</title>{style}<script>{SCRIPT}</script></head>"


def _html5(body: str) -> str:
    menu = "".join(f'<li><a href="/{number}">{entry}</a></li>' for number, entry in enumerate(MENU))
    others = "".join(f"<h3>{line}</h3>" for line in HEADLINES)
    return (
        f"<!DOCTYPE html>\n<html lang=tr>{_head()}<body><header><nav><ul>{menu}</ul></nav></header>"
        f"<!-- content --><main><article>\n{body}</article></main><aside>{others}</aside>"
        f"<form><button>Abone ol</button></form><footer><p>{FOOTER}</p></footer></body></html>"
    )


def _divs(body: str) -> str:
    menu = "".join(f'<a class="menu-item" href="/{number}">{entry}</a> ' for number, entry in enumerate(MENU))
    others = "".join(f'<div class="related-item"><a href="/">{line}</a></div>' for line in HEADLINES)
    return (
        f'<!doctype html><html>{_head()}<body><div id="header"><div class="menu">{menu}</div></div>'
        f'<div class="cookie-banner">{BANNER}</div><div id="content"><div class="post">\n{body}</div></div>'
        f'<div class="sidebar">{others}</div><script>{SCRIPT}</script><div id="footer">{FOOTER}</div></body></html>'
    )


def _old(body: str) -> str:
    menu = " | ".join(f"<A HREF=/{number}>{entry}</A>" for number, entry in enumerate(MENU))
    return (
        f"<HTML>{_head()}<BODY BGCOLOR=white><TABLE><TR><TD>{menu}</TABLE>\n"
        f"<TABLE WIDTH=600><TR><TD>\n{body}</TABLE><HR><FONT SIZE=1>{FOOTER}</FONT></BODY></HTML>"
    )


def extractor(name: str) -> Callable[[str], str]:
    """The function of a contender from markup to text."""
    if name == "mm-rec":
        from mm_rec.cleaning.document import CleaningDocument
        from mm_rec.cleaning.markup import strip_markup
        from mm_rec.text.languages import get_language

        turkish = get_language("tr")
        return lambda markup: strip_markup(CleaningDocument(markup, turkish)).text
    if name == "trafilatura":
        import trafilatura

        return lambda markup: trafilatura.extract(markup, fast=True, include_comments=False) or ""
    from resiliparse.extract.html2text import extract_plain_text

    main = name == "resiliparse-main"
    return lambda markup: extract_plain_text(
        markup, main_content=main, alt_texts=False, list_bullets=False, skip_elements=WITHOUT_PROSE
    )


def peers() -> list[str]:
    """The contenders beside ours; trafilatura only where it is installed."""
    try:
        import trafilatura  # noqa: F401
    except ImportError as error:
        print(f"without trafilatura ({error}): pip install 'trafilatura>=2.3'", file=sys.stderr)
        return ["resiliparse", "resiliparse-main"]
    return ["resiliparse", "resiliparse-main", "trafilatura"]


def quality(kind: str, made: list[Sample], written: list[str]) -> Iterator[tuple[str, float]]:
    """The shares of a kind, by name."""
    words = kept = written_words = whole = 0
    for sample, text in zip(made, written, strict=True):
        known, found = Counter(_words(" ".join(sample.paragraphs))), Counter(_words(text))
        words, written_words, kept = (
            words + known.total(),
            written_words + found.total(),
            kept + (known & found).total(),
        )
        lines = {" ".join(line.split()) for line in text.split("\n")}
        whole += sum(paragraph in lines for paragraph in sample.paragraphs)
    yield f"{kind}_kept", kept / words
    yield f"{kind}_whole", whole / (PARAGRAPHS * len(made))
    yield f"{kind}_frame", 1 - kept / max(1, written_words)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def child(contender: str, count: int) -> None:
    """Run one contender in this process and hand over its figures."""
    extract = extractor(contender)
    figures: dict[str, float] = {}
    size = seconds = 0.0
    for kind in KINDS:
        made = samples(kind, count)
        extract(made[0].markup)
        start = time.process_time()
        written = [extract(sample.markup) for sample in made]
        spent = time.process_time() - start
        megabytes = text_data.size_mb([sample.markup for sample in made])
        figures[f"{kind}_mb_per_second"] = megabytes / spent
        figures.update(quality(kind, made, written))
        if kind not in ("plain", "markdown"):
            size, seconds = size + megabytes, seconds + spent
    rounded = {name: round(value, 3) for name, value in figures.items()}
    protocol.child_result(
        {**rounded, "mb_per_second": round(size / seconds, 2), "peak_mb": round(protocol.peak_mb())}
    )


def main() -> None:
    """Compare, or be a contender (`--child`)."""
    options = protocol.parser(__doc__)
    options.add_argument("--pages", type=int, default=600, help="of each kind")
    options.add_argument("--child", nargs=2, metavar=("CONTENDER", "PAGES"))
    chosen = options.parse_args()
    if chosen.child:
        child(chosen.child[0], int(chosen.child[1]))
        return
    count = 100 if chosen.quick else chosen.pages

    def contender(name: str) -> Callable[[], dict[str, float]]:
        return lambda: protocol.run_child(__file__, ["--child", name, str(count)], timeout=600)

    rounds = 1 if chosen.quick else chosen.rounds
    results = protocol.compare(
        "html_text",
        contender("mm-rec"),
        {name: contender(name) for name in peers()},
        rounds,
        "mb_per_second",
        {"pages": count},
    )
    for name, figures in results.items():
        print(json.dumps({"bench": "html_text", "contender": name, **figures[-1]}))


if __name__ == "__main__":
    main()
