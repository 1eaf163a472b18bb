"""Explain bytes that are not UTF-8 text: the byte, a guess at the encoding, and the command that converts it."""

from __future__ import annotations

from pathlib import Path

from mm_rec.sources.locations import SourceFile, compression
from mm_rec.sources.problems import ProblemError, problem_error

HEAD_BYTES = 4096

_TURKISH_BYTES = frozenset("ğışĞİŞ".encode("cp1254"))
_CONTROL_BYTES = frozenset(range(32)) - frozenset(b"\t\n\v\f\r\x1a\x1b")


def not_text(
    path: SourceFile, head: bytes, line: int, offset: int, raw: bytes, multibyte: bool
) -> ProblemError:
    """The error for `raw`, a line that is not UTF-8 or holds a zero byte.

    `head` are the first bytes of the file, `offset` is where the line starts (bytes), `multibyte` says
    whether the text before it has other than ASCII characters.
    """
    if head.startswith(b"\x1f\x8b"):
        return problem_error("encoding", "the file is gzip-compressed. Give it a name that ends in .gz", path)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return problem_error(
            "encoding", "the file is zstd-compressed. Give it a name that ends in .zst", path
        )
    wide = _wide_encoding(head)
    if wide:
        return problem_error(
            "encoding",
            f"the file is {wide}, not UTF-8 (seen at byte 0). Convert it: {_iconv(path, wide)}",
            path,
            1,
        )
    if b"\0" in raw:
        return _binary(path, line, offset + raw.index(b"\0"))
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        if _looks_binary(head):
            return _binary(path, line, offset + error.start)
        return _wrong_byte(path, line, offset, raw, error, multibyte)
    raise AssertionError(f"line {line} of {path} is text")


def _wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32 told by the byte-order mark, or by zero bytes that stand at every second place."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    even, odd, pairs = head[0::2].count(0), head[1::2].count(0), len(head) // 2
    if pairs and max(even, odd) > 0.4 * pairs and min(even, odd) < 0.02 * pairs:
        return "UTF-16LE" if odd > even else "UTF-16BE"
    return None


def _looks_binary(head: bytes) -> bool:
    """True where more than 1 % of the first bytes are control characters, which no text has."""
    return sum(byte in _CONTROL_BYTES for byte in head) > len(head) / 100


def _binary(path: SourceFile, line: int, offset: int) -> ProblemError:
    return problem_error(
        "binary",
        f"this is a binary file, not text (byte {offset} cannot stand in a text). "
        "Leave it out, or extract its text into a UTF-8 .txt",
        path,
        line,
    )


def _wrong_byte(
    path: SourceFile, line: int, offset: int, raw: bytes, error: UnicodeDecodeError, multibyte: bool
) -> ProblemError:
    """The error for text in another encoding, or for UTF-8 with a damaged place."""
    place = f"byte {offset + error.start} (0x{raw[error.start]:02X}) is not UTF-8"
    if error.reason == "unexpected end of data" and error.end == len(raw):
        return problem_error(
            "encoding",
            f"the file ends in the middle of a character ({place}): it was probably cut short. Fetch it "
            f"again, or drop the broken character: {_iconv(path, 'UTF-8', '-c ')}",
            path,
            line,
        )
    if multibyte:
        return problem_error(
            "encoding",
            f"{place}, though the text before it is: the file is damaged here, or joined from files of "
            f"different encodings. Drop such bytes: {_iconv(path, 'UTF-8', '-c ')}",
            path,
            line,
        )
    nearby = raw[max(0, error.start - 15) : error.start + 15].strip()
    turkish = any(byte in _TURKISH_BYTES for byte in raw)
    readings = " or ".join(
        f"{nearby.decode(encoding, errors='replace')!r} ({encoding})" for encoding in ("cp1254", "latin-1")
    )
    return problem_error(
        "encoding",
        f"{place}; the file is in another encoding, likely cp1254 (Turkish) or latin-1: it reads {readings}. "
        f"Convert it: {_iconv(path, 'CP1254' if turkish else 'LATIN1')}",
        path,
        line,
    )


def _iconv(file: SourceFile, encoding: str, option: str = "") -> str:
    """The shell line that rewrites a file (a remote one: its copy here) as UTF-8 beside the old one."""
    path = file if isinstance(file, Path) else Path(file.name)
    convert = f"iconv {option}-f {encoding} -t UTF-8"
    stem, _, suffixes = path.name.partition(".")
    target = path.with_name(f"{stem}.utf8.{suffixes}")
    program = {"gz": "gzip", "zst": "zstd"}.get(compression(file) or "")
    if program:
        return f"{program} -dc '{path}' | {convert} | {program} > '{target}'"
    return f"{convert} '{path}' > '{target}'"
