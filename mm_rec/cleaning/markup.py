"""Strip markup: HTML and Markdown to plain text.

A whole web page is read by resiliparse, a parser of HTML as browsers read it. Text with some tags in it is not: there a
line end is a line end, Markdown means what it says, and "a < b" is no tag. bench/html_text.py compares both.
"""

from __future__ import annotations

import html
import re

from mm_rec.cleaning.document import CleaningDocument, Cut
from mm_rec.errors import needs_extra

_PAGE = re.compile(
    r"(?:\s++|<\?xml[^<>]*>|(?><!--.*?-->))*+<(?:!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL
)
_FRONT_MATTER = re.compile(
    r"\A\s*(?:---\n.*?\n(?:---|\.\.\.)|\+\+\+\n.*?\n\+\+\+)[^\S\n]*(?:\n|\Z)", re.DOTALL
)
_FENCED_CODE = re.compile(
    r"^[ \t]*(```|~~~)[^\n]*\n.*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL
)
_HIDDEN = re.compile(
    r"<(?:(!--)|(script|style|noscript|template|svg|head|nav|footer|aside|button|select|iframe|pre)\b[^<>]*>)",
    re.IGNORECASE,
)
_BLOCK_TAG = re.compile(
    r"</?(?:p|div|br|hr|li|ul|ol|dl|dt|dd|h[1-6]|tr|table|thead|tbody|section|article|header|main|figure"
    r"|figcaption|blockquote|body|html|title|address)\b[^<>]*>",
    re.IGNORECASE,
)
_CELL_TAG = re.compile(r"</(?:td|th)\s*>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9:-]*(?:\s[^<>]*)?/?>|<![a-zA-Z][^<>]*>")
_ENTITY = re.compile(r"&(?:#\d+|#x[0-9a-fA-F]+|[a-zA-Z][a-zA-Z0-9]+);")

_IMAGE = re.compile(r"!\[[^\]\n]*\]\([^)\n]*\)(?:\{[^}\n]*\})?")
_DIRECTIVE = re.compile(
    r"^[ \t>]*(?:\[!(?:include|code|video)[^\n]*\]|:::[^\n]*)[ \t]*$", re.MULTILINE | re.IGNORECASE
)
_CALLOUT = re.compile(r"^[ \t]*(?:>[ \t]*)+(?:\[![A-Za-z]+\][ \t]*)?", re.MULTILINE)
_LINK = re.compile(
    r"\[((?:[^\[\]\n]++|\n(?!\s)|\[[^\[\]\n]*+\])*+)\](?:\([^()\n]*(?:\([^()\n]*\)[^()\n]*)*\)|\[[^\]\n]*\])"
)
_LINK_TARGET = re.compile(r"^[ \t]*\[[^\]\n]+\]:[ \t]*\S+[^\n]*$", re.MULTILINE)
_HEADING = re.compile(r"^[ \t]*#{1,6}[ \t]+", re.MULTILINE)
_RULE = re.compile(r"^[ \t]*(?:=[ \t]*|-[ \t]*|\*[ \t]*|_[ \t]*){3,}$", re.MULTILINE)
_TABLE_RULE = re.compile(r"^[ \t]*\|?(?:[ \t]*:?-{2,}:?[ \t]*\|)+[ \t]*(?::?-{2,}:?)?[ \t]*$", re.MULTILINE)
_TABLE_ROW = re.compile(r"^[ \t]*\|(.*)$", re.MULTILINE)
# It begins with a set of characters, so that it is searched for fast; what stands before is looked at afterwards.
_EMPHASIS = re.compile(
    r"[*_](?:(?<=\*)(?<![\w*\\].)(\*\*|\*|)(?=\S)((?:[^*\n]++|\n(?!\s))++)(?<=[^\s\\])\*\1(?![\w*])"
    r"|(?<=_)(?<![\w\\].)(__|_|)(?=\S)((?:[^_\n]++|\n(?!\s))++)(?<=[^\s\\])_\3(?!\w))"
)
_CODE = re.compile(r"(`+)([^`\n]+)\1")
_ESCAPE = re.compile(r"\\([\\`*_{}\[\]()#+.!|<>~-])")


def strip_markup(document: CleaningDocument) -> CleaningDocument:
    """Cut front matter, code blocks and HTML elements without prose; replace other markup by its text."""
    text = document.text
    cuts: list[Cut] = []

    def cut(pattern: re.Pattern[str], reason: str, text: str) -> str:
        def note(match: re.Match[str]) -> str:
            cuts.append(Cut(reason, match.group()))
            return "\n"

        return pattern.sub(note, text)

    if _PAGE.match(text):
        return document.with_text(_page_text(_without_hidden(text, cuts)), cuts)
    if text.lstrip().startswith(("---\n", "+++\n")):
        text = cut(_FRONT_MATTER, "front matter", text)
    if "```" in text or "~~~" in text:
        text = cut(_FENCED_CODE, "code block", text)
    if "<" in text:
        text = _without_hidden(text, cuts)
        text = _TAG.sub("", _CELL_TAG.sub(" ", _BLOCK_TAG.sub("\n", text)))
    text = _plain_markdown(text)
    if "&" in text:
        text = _ENTITY.sub(lambda match: html.unescape(match.group()), text)
    return document.with_text(text, cuts)


def _page_text(page: str) -> str:
    """The text of a web page.

    All of it: resiliparse's search for the main content loses nine lists in ten, and trafilatura takes a dozen times
    as long. What is left of menus and footers goes with the lines.
    """
    with needs_extra("data", "reading web pages"):
        from resiliparse.extract.html2text import extract_plain_text
    text = extract_plain_text(page, alt_texts=False, list_bullets=False)
    return "\n".join(
        " ".join(line.split()) for line in text.split("\n")
    )  # without indents, and tabs of tables


def _without_hidden(text: str, cuts: list[Cut]) -> str:
    """The text without comments and elements that hold no prose; each part is looked at once, even if never closed."""
    kept: list[str] = []
    place = 0
    unclosed: set[str] = set()
    for opening in _HIDDEN.finditer(text):
        name = "-->" if opening[1] else f"</{opening[2].lower()}[^<>]*>"
        if opening.start() < place or name in unclosed:
            continue
        closing = re.compile(name, re.IGNORECASE).search(text, opening.end())
        if closing is None:
            unclosed.add(name)
            continue
        kept.append(text[place : opening.start()] + ("" if opening[1] else "\n"))
        place = closing.end()
        cuts.append(Cut("HTML without prose", text[opening.start() : place]))
    return "".join([*kept, text[place:]]) if place else text


def _plain_markdown(text: str) -> str:
    """The text of Markdown; each form is looked for only where its sign occurs."""
    if "](" in text or "][" in text or "]:" in text or "[!" in text or ":::" in text:
        text = _DIRECTIVE.sub("", text)
        text = _LINK_TARGET.sub("", _IMAGE.sub("", text))
        text = _LINK.sub(r"\1", text)
    if ">" in text:
        text = _CALLOUT.sub("", text)
    if "#" in text:
        text = _HEADING.sub("", text)
    if "|" in text:
        text = _TABLE_ROW.sub(_cells, _TABLE_RULE.sub("", text))
    if "---" in text or "===" in text or "***" in text or "* *" in text or "___" in text or "- -" in text:
        text = _RULE.sub("", text)
    if "*" in text or "_" in text:
        text = _EMPHASIS.sub(lambda match: match[2] or match[4], text)
    if "`" in text:
        text = _CODE.sub(r"\2", text)
    return _ESCAPE.sub(r"\1", text) if "\\" in text else text


def _cells(row: re.Match[str]) -> str:
    """The cells of a table row, with commas between them."""
    return ", ".join(cell for part in row[1].split("|") if (cell := part.strip()))
