"""Personal data gives way to a label: addresses, numbers of telephones, accounts, cards and people.

A number is masked only where its own check digits hold or its form leaves no doubt, so that years, prices and
article numbers stay. Checks: ISO 13616 (IBAN), ISO/IEC 7812-1 annex B (cards, Luhn), Law 5490's eleven-digit
Turkish identity number with its two check digits.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

from mm_rec.data.cleaning.page import Cut, Page

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[^\W\d_]{2,24}\b")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]{4}){2,7}(?:[ ]?[A-Z0-9]{1,3})?\b")
_ADDRESS = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_START, _END = (
    r"(?<![\w.,/+(-])",
    r"(?![\w]|[.,/-]\d)",
)  # no part of a date, a price, an article number or a path
# Four groups of four digits, or American Express's 4-6-5.
_CARD = re.compile(rf"{_START}(?:(?:\d{{4}}[ -]?){{3}}\d{{1,7}}|\d{{4}}[ -]?\d{{6}}[ -]?\d{{5}}){_END}")
_IDENTITY = re.compile(rf"{_START}[1-9]\d{{10}}{_END}")
# 0 (532) 123 45 67 and its kin; without a leading 0 or +90 only a mobile number, and only in groups.
_TURKISH_PHONE = re.compile(
    rf"{_START}(?:(?:\+90|0090|90|0)[ .-]?\(?[2-5]\d{{2}}\)?[ .-]?\d{{3}}[ .-]?\d{{2}}[ .-]?\d{{2}}"
    rf"|\(?5\d{{2}}\)?[ .-]\d{{3}}[ .-]\d{{2}}[ .-]\d{{2}}){_END}"
)
_OTHER_PHONE = re.compile(rf"{_START}\+\d(?:[ ().-]{{0,2}}\d){{8,14}}{_END}")


def mask_personal(page: Page) -> Page:
    """Put [EMAIL], [IBAN], [CARD], [ID], [PHONE] and [IP] in place of what they name."""
    text = page.text
    cuts: list[Cut] = []

    def mask(label: str, pattern: re.Pattern[str], holds: Callable[[str], bool]) -> None:
        def replace(match: re.Match[str]) -> str:
            if not holds(match.group()):
                return match.group()
            cuts.append(Cut(f"personal data: {label}", match.group()))
            return f"[{label}]"

        nonlocal text
        text = pattern.sub(replace, text)

    if "@" in text:
        mask("EMAIL", _EMAIL, lambda found: True)
    mask("IBAN", _IBAN, is_iban)
    mask("CARD", _CARD, lambda found: is_card(re.sub(r"\D", "", found)))
    mask("ID", _IDENTITY, is_turkish_identity)
    mask("PHONE", _TURKISH_PHONE, lambda found: True)
    mask("PHONE", _OTHER_PHONE, lambda found: True)
    mask("IP", _ADDRESS, is_public_address)
    return page.with_text(text, cuts)


def is_iban(text: str) -> bool:
    """Whether an account number's remainder by 97 is 1 (ISO 13616), and a Turkish one has its 26 characters."""
    compact = text.replace(" ", "")
    if not 15 <= len(compact) <= 34 or (compact.startswith("TR") and len(compact) != 26):
        return False
    moved = compact[4:] + compact[:4]
    return int("".join(str(int(character, 36)) for character in moved)) % 97 == 1


def is_card(digits: str) -> bool:
    """Whether 13 to 19 digits begin as cards do and satisfy Luhn's check."""
    if not 13 <= len(digits) <= 19 or digits[0] not in "3456":
        return False
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def is_turkish_identity(digits: str) -> bool:
    """Whether eleven digits are a Turkish identity number: its tenth and eleventh digits follow from the others."""
    if len(digits) != 11 or digits[0] == "0":
        return False
    d = [int(digit) for digit in digits]
    return (7 * sum(d[0:9:2]) - sum(d[1:8:2])) % 10 == d[9] and sum(d[:10]) % 10 == d[10]


def is_public_address(text: str) -> bool:
    """Whether four numbers are a public network address and hardly a version: one of them is 100 or more."""
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:  # 999.1.1.1, or a version number with leading zeros
        return False
    return address.is_global and max(address.packed) >= 100
