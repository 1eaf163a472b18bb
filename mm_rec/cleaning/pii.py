"""Mask personal data (PII) with labels: e-mail and IP addresses, numbers of telephones, accounts, cards and people.

A number is masked only where its own check digits hold or its form leaves no doubt, so that years, prices and
article numbers stay. Checks: ISO 13616 (IBAN), ISO/IEC 7812-1 annex B (cards, Luhn), Law 5490's eleven-digit
Turkish identity number with its two check digits.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Callable

from mm_rec.cleaning.document import CleaningDocument, Cut

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[^\W\d_]{2,24}\b")
# A line with neither nine digits in a row (but for what may stand between them) nor an address holds nothing else.
_NUMBERS = re.compile(r"\d(?:(?:[ ().+/-]{0,3}\d){8}|\d{0,2}\.\d{1,3}\.\d{1,3}\.\d)")
# No part of a word, a date, a price, an article number, a version or a path; any other mark may stand around a number.
_START, _END = r"(?<![^\W_])(?<!\d[.,:/+-])(?<!\+)", r"(?![^\W_]|[.,:/-]\d)"
_ADDRESS = re.compile(rf"{_START}(?:\d{{1,3}}\.){{3}}\d{{1,3}}(?![^\W_]|[.,:/-]\d)")
# Four groups of four digits, or American Express's 4-6-5.
_CARD = re.compile(rf"{_START}(?:(?:\d{{4}}[ -]?){{3}}\d{{1,7}}|\d{{4}}[ -]?\d{{6}}[ -]?\d{{5}}){_END}")
_IDENTITY = re.compile(rf"{_START}[1-9]\d{{10}}{_END}")
# 0 (532) 123 45 67 and its kin; without 0 or +90 before it only in groups, with brackets or as a mobile number.
# A second line may follow: 0212 123 45 67-68.
_TURKISH_PHONE = re.compile(
    rf"{_START}(?:(?:(?:\+90|0090|90)[ .-]?)?\(0[2-5]\d{{2}}\)[ ./-]?\d{{3}}[ .-]?\d{{2}}[ .-]?\d{{2}}"
    rf"|(?:\+90|0090|90|0)[ .-]?(?:\([2-5]\d{{2}}\)|[2-5]\d{{2}})[ ./-]?\d{{3}}[ .-]?\d{{2}}[ .-]?\d{{2}}"
    rf"|(?:\([2-5]\d{{2}}\)|5\d{{2}})[ .-]\d{{3}}[ .-]\d{{2}}[ .-]\d{{2}})(?:[/-]\d{{1,2}})?{_END}"
)
_OTHER_PHONE = re.compile(rf"{_START}\+\d(?:[ ().-]{{0,2}}\d){{8,14}}{_END}")
# The length of an account number in each country that has them (ISO 13616, SWIFT's registry).
_IBAN_COUNTRIES = """
AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24
FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32
LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24
RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30
"""
_IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _IBAN_COUNTRIES.split()}
_IBAN_HEAD = re.compile(rf"(?<![^\W_])(?:{'|'.join(_IBAN_LENGTHS)})\d\d", re.IGNORECASE | re.ASCII)


def mask_pii(document: CleaningDocument) -> CleaningDocument:
    """Put [EMAIL], [IBAN], [CARD], [ID], [PHONE] and [IP] in place of what they name."""
    text = document.text
    cuts: list[Cut] = []
    if "@" in text:
        text = _mask(text, "EMAIL", _EMAIL, lambda found: True, cuts)
    if _NUMBERS.search(text):
        lines = text.split("\n")
        text = "\n".join([_mask_numbers(line, cuts) if _NUMBERS.search(line) else line for line in lines])
    return document.with_text(text, cuts)


def _mask_numbers(line: str, cuts: list[Cut]) -> str:
    line = _mask_ibans(line, cuts)
    line = _mask(line, "CARD", _CARD, lambda found: is_card(re.sub(r"\D", "", found)), cuts)
    line = _mask(line, "ID", _IDENTITY, is_turkish_identity, cuts)
    line = _mask(line, "PHONE", _TURKISH_PHONE, lambda found: True, cuts)
    line = _mask(line, "PHONE", _OTHER_PHONE, lambda found: True, cuts)
    return _mask(line, "IP", _ADDRESS, is_public_address, cuts)


def _mask(
    text: str, label: str, pattern: re.Pattern[str], holds: Callable[[str], bool], cuts: list[Cut]
) -> str:
    def replace(match: re.Match[str]) -> str:
        if not holds(match.group()):
            return match.group()
        cuts.append(Cut(f"personal data: {label}", match.group()))
        return f"[{label}]"

    return pattern.sub(replace, text)


def _mask_ibans(line: str, cuts: list[Cut]) -> str:
    """The line with account numbers masked: as long as their country has them, whatever word follows."""
    kept: list[str] = []
    place = 0
    for head in _IBAN_HEAD.finditer(line):
        whole = _iban_form(_IBAN_LENGTHS[head[0][:2].upper()]).match(line, head.start())
        if head.start() < place or whole is None or not is_iban(whole[0]):
            continue
        kept += [line[place : head.start()], "[IBAN]"]
        cuts.append(Cut("personal data: IBAN", whole[0]))
        place = whole.end()
    return "".join([*kept, line[place:]])


@functools.cache
def _iban_form(length: int) -> re.Pattern[str]:
    return re.compile(rf"[A-Za-z0-9](?:[ .-]?[A-Za-z0-9]){{{length - 1}}}(?![^\W_])")


def is_iban(text: str) -> bool:
    """Return True if an account number has its country's length, is mostly digits, and is 1 modulo 97 (ISO 13616)."""
    compact = re.sub(r"[ .-]", "", text).upper()
    if len(compact) != _IBAN_LENGTHS.get(compact[:2]) or 2 * sum(map(str.isdecimal, compact)) < len(compact):
        return False
    moved = compact[4:] + compact[:4]
    return int("".join(str(int(character, 36)) for character in moved)) % 97 == 1


def is_card(digits: str) -> bool:
    """Return True if 13 to 19 digits begin as cards do and satisfy Luhn's check."""
    if not 13 <= len(digits) <= 19 or digits[0] not in "3456":
        return False
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def is_turkish_identity(digits: str) -> bool:
    """Return True if eleven digits are a Turkish identity number: its last two digits follow from the others."""
    if len(digits) != 11 or digits[0] == "0":
        return False
    d = [int(digit) for digit in digits]
    return (7 * sum(d[0:9:2]) - sum(d[1:8:2])) % 10 == d[9] and sum(d[:10]) % 10 == d[10]


def is_public_address(text: str) -> bool:
    """Return True if four numbers are a public IP address and hardly a version: one of them is 100 or more."""
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:  # 999.1.1.1, or a version number with leading zeros
        return False
    return address.is_global and max(address.packed) >= 100
