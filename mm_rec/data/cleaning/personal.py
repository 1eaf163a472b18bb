"""Personal data gives way to a label: addresses, numbers of telephones, accounts, cards and people.

A number is masked only where its own check digits hold or its form leaves no doubt, so that years, prices and
article numbers stay. Checks: ISO 13616 (IBAN), ISO/IEC 7812-1 annex B (cards, Luhn), Law 5490's eleven-digit
Turkish identity number with its two check digits.
"""

from __future__ import annotations

import ipaddress
import re

from mm_rec.data.cleaning.page import Cut, Page

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[^\W\d_]{2,24}\b")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]{4}){2,7}(?:[ ]?[A-Z0-9]{1,3})?\b")
_ADDRESS = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
# Runs of at least ten digits with what people put between them.
_NUMBER = re.compile(r"(?<![\w.,/+-])(?:\+|\()?\d(?:[ ()./-]{0,2}\d){8,20}(?![\w]|[.,/-]\d)")
_TURKISH_PHONE = re.compile(r"(?:90|0)[23458]\d{9}")


def mask_personal(page: Page) -> Page:
    """Put [EMAIL], [IBAN], [CARD], [ID], [PHONE] and [IP] in place of what they name."""
    text = page.text
    cuts: list[Cut] = []

    def mask(pattern: re.Pattern[str], text: str) -> str:
        def label(match: re.Match[str]) -> str:
            kind = _kind(match.group())
            if kind is None:
                return match.group()
            cuts.append(Cut(f"personal data: {kind}", match.group()))
            return f"[{kind}]"

        return pattern.sub(label, text)

    if "@" in text:
        text = mask(_EMAIL, text)
    for pattern in (_IBAN, _ADDRESS, _NUMBER):
        text = mask(pattern, text)
    return page.with_text(text, cuts)


def _kind(found: str) -> str | None:
    """What kind of personal data a piece of text is, or None."""
    if "@" in found:
        return "EMAIL"
    if found[0].isalpha():
        return "IBAN" if is_iban(found) else None
    if found.count(".") == 3 and _ADDRESS.fullmatch(found):
        return "IP" if _is_public_address(found) else None
    digits = re.sub(r"\D", "", found)
    if len(digits) >= 13:
        return "CARD" if is_card(digits) else None
    if len(digits) == 11 and found.isdigit() and is_turkish_identity(digits):
        return "ID"
    return "PHONE" if _is_phone(found, digits) else None


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


def _is_phone(found: str, digits: str) -> bool:
    """Whether digits are a telephone number: by a plus sign, or by the form that Turkish ones have.

    Ten digits in a row without a leading 0 are more often an order or an article number.
    """
    if found.lstrip("(").startswith("+"):
        return 9 <= len(digits) <= 15
    mobile = len(digits) == 10 and digits[0] == "5" and not found.isdigit()
    return mobile or bool(_TURKISH_PHONE.fullmatch(digits))


def _is_public_address(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:  # 999.1.1.1, or a version number with leading zeros
        return False
