"""Turkish inflection: a form of a word is a stem of it with endings in their order and in vowel harmony.

A noun (and any word but a verb) takes plural, possessive, case, -ki and the copula; a verb, given as its infinitive in
-mak or -mek, takes passive, ability, negation, tense or participle, and then what a noun takes. Derived words are no
forms: kitapçı is not one of kitap, buluşmak not one of bulmak.
"""

from __future__ import annotations

import re
from typing import Literal

# The letters, what may follow them, and whether that must begin with a vowel.
Stem = tuple[str, Literal["noun", "verb", "narrowed", "whole"], bool]


def stems(word: str) -> frozenset[Stem]:
    """Return the stems of a word in small letters: kitap → kitap-, and kitab- before a vowel."""
    found = _noun_stems(word)
    if _INFINITIVE.search(word) and len(word) > len("mak"):
        found |= _verb_stems(word[:-3])
    return frozenset(found)


def without_apostrophe(token: str) -> tuple[str, ...]:
    """Return the token without the apostrophe that parts a name from its endings: "ali'nin" → alinin."""
    return (token.replace("'", "").replace("’", ""),)


def is_inflection(token: str, stem: Stem) -> bool:
    """Return whether a token that begins with a stem goes on with endings of its kind."""
    letters, kind, needs_vowel = stem
    rest = token[len(letters) :]
    if kind == "whole":
        return not rest
    if needs_vowel and rest[:1] not in _HIGH:
        return False
    # Matched where it stands, because an ending depends on the letter before it.
    return _ENDINGS[kind].fullmatch(token, len(letters)) is not None and _in_harmony(letters, rest)


def _noun_stems(word: str) -> set[Stem]:
    if word in _PRONOUNS:
        return {(form, "whole", False) for form in (word, *_PRONOUNS[word])}
    found: set[Stem] = {(word, "noun", False)}
    found |= {(form, "whole", False) for form in _SPECIAL.get(word, ())}
    changed = _BEFORE_A_VOWEL.get(word)
    if changed:
        found.add((changed, "noun", True))
    elif word.endswith("nk"):
        found.add((word[:-1] + "g", "noun", True))
    elif word[-1:] in _SOFT and len(word) > 2:
        found.add((word[:-1] + _SOFT[word[-1]], "noun", True))
    return found


def _verb_stems(stem: str) -> set[Stem]:
    found: set[Stem] = {(stem, "verb", False)}
    if stem.endswith("et") or stem in ("git", "tat", "güt", "dit"):
        found.add((stem[:-1] + "d", "verb", True))
    if stem in ("de", "ye"):
        found.add((stem[0] + "i", "verb", False))  # diye, yiyecek
    if stem[-1:] in ("a", "e"):
        found.add((stem[:-1], "narrowed", True))  # başla-: başlıyor
    return found


def _in_harmony(letters: str, rest: str) -> bool:
    """Check the vowel harmony of endings; -yor, -bil, -ki and -ken never change."""
    before = next((letter for letter in reversed(letters) if letter in _HIGH), "")
    if letters in _FRONT:
        before = {"a": "e", "o": "ö", "u": "ü"}.get(before, before)
    for place, letter in enumerate(rest):
        if letter not in _HIGH:
            continue
        fixed = letter == "o" or (letter in "ie" and place > 0 and rest[place - 1] in "kb")
        wanted = ("a" if before in _BACK else "e") if letter in "ae" else _HIGH.get(before, letter)
        if before and not fixed and letter != wanted:
            return False
        before = letter
    return True


_INFINITIVE = re.compile(r"(?:[aıou][^aeıioöuü]*mak|[eiöü][^aeıioöuü]*mek)\Z")
_BACK = "aıou"
# For each vowel the high one that follows it.
_HIGH = {"a": "ı", "ı": "ı", "o": "u", "u": "u", "e": "i", "i": "i", "ö": "ü", "ü": "ü"}
_SOFT = {"p": "b", "ç": "c", "t": "d", "k": "ğ", "g": "ğ"}

# Archiphonemes: I is one of ı i u ü, A one of a e, D is t after a voiceless consonant and otherwise d.
_I, _A = "[ıiuü]", "[ae]"
_D = "(?:(?<=[pçtkfhsş])t|(?<![pçtkfhsş])d)"
_AFTER_VOWEL, _AFTER_CONSONANT = "(?<=[aeıioöuü])", "(?<![aeıioöuü])"


def _linked(consonants: str, ending: str) -> str:
    """Return a pattern for an ending that takes one of some consonants after a vowel, and none after a consonant."""
    return f"(?:{_AFTER_VOWEL}{consonants}|{_AFTER_CONSONANT}){ending}"


# -Im, -In, -ImIz, -InIz, -sI
_POSSESSIVE = f"(?:(?:{_AFTER_VOWEL}|{_AFTER_CONSONANT}{_I})[mn](?:{_I}z)?|{_linked('s', _I)})?"
_CASE = f"(?:{_linked('[yn]', _I)}|{_linked('[yn]', _A)}|n?{_D}{_A}n?|{_linked('n', _I)}n|y?l{_A}|(?:nc|[cç]){_A})?"
_KI = f"(?:(?<=[dt]{_A}|{_I}[nm])ki(?:l{_A}r)?(?:n[iae]|n?[dt]en?|nin|yle)?)?"
_PAST = f"(?:y?{_D}{_I}|y?s{_A})(?:[mnk]|n{_I}z|l{_A}r)?"
_PRESENT = f"(?:y?m{_I}ş)?(?:{_linked('y', _I)}[mz]|s{_I}n(?:{_I}z)?|l{_A}r)?"
_NOUN = f"(?:l{_A}r)?{_POSSESSIVE}{_CASE}{_KI}(?:{_PAST}|{_PRESENT})(?:{_D}{_I}r(?:l{_A}r)?|y?ken)?"
_TENSE = (
    f"(?:{_AFTER_CONSONANT}{_I}yor|(?<={_I})yor|{_linked('y', _A)}c{_A}[kğ]|{_D}{_I}[kğ]?|m{_I}ş|s{_A}k?|m{_A}l{_I}"
    f"|{_AFTER_CONSONANT}[aeıiuü]r|{_AFTER_VOWEL}r|(?<=m{_A})z|m{_A}k?|m{_A}d{_A}n|{_linked('y', _A)}(?:n|r{_A}k)?"
    f"|{_linked('y', _I)}(?:p|nc{_A})|{_linked('y', _A)}l{_I}m)"
)
_BARE = f"(?:{_linked('y', _I)}n(?:{_I}z)?|{_AFTER_VOWEL}m|yiz|yız|s{_I}n(?:l{_A}r)?)?"  # commands, and -mem, -meyiz
_VOICE = f"(?:{_AFTER_CONSONANT}{_I}[ln]|{_AFTER_VOWEL}n)?"
_ABLE = f"(?:{_linked('y', _A)}(?:bil|m{_A}?))?(?:m{_A}?)?(?:y{_A}bil)?"
_ENDINGS = {
    "noun": re.compile(_NOUN),
    "verb": re.compile(f"{_VOICE}{_ABLE}(?:{_TENSE}{_NOUN}|{_BARE})"),
    "narrowed": re.compile(f"{_I}yor{_NOUN}"),
}


def _pairs(rows: str) -> dict[str, str]:
    return dict(zip(rows.split()[::2], rows.split()[1::2], strict=True))


def _set(row: str) -> frozenset[str]:
    return frozenset(row.split())


# Where the last vowel falls out or the last consonant is doubled, and su.
_BEFORE_A_VOWEL = _pairs(
    """
    ağız ağz akıl akl alın aln asıl asl beyin beyn boyun boyn burun burn cisim cism devir devr emir emr fikir fikr
    göğüs göğs hapis haps hüküm hükm ilim ilm isim ism izin izn karın karn kayıt kayd keyif keyf kısım kısm metin metn
    nehir nehr oğul oğl omuz omz ömür ömr resim resm sabır sabr şehir şehr şekil şekl vakit vakt zehir zehr zihin zihn
    zulüm zulm hak hakk his hiss hat hatt ret redd üs üss af aff zam zamm tıp tıbb sır sırr had hadd zıt zıdd su suy
    """
)
_PRONOUN_ENDINGS = _set("u a un da dan ca unla suz lar ları lara ların larda lardan larla")
_PRONOUNS = {word: frozenset(f"{word}n{ending}" for ending in _PRONOUN_ENDINGS) for word in ("o", "bu", "şu")}
_SPECIAL = {"ben": ("bana",), "sen": ("sana",), "ne": ("neyin", "neyim")}
# Loan words whose endings are front after a back vowel: saati, golü.
_FRONT = _set(
    """
    saat hal rol gol kalp kalb harf dikkat seyahat hakikat festival petrol kontrol alkol kabul meşgul usul mahsul sembol
    protokol terminal santral hayal ihtimal misal moral normal ideal sosyal
    """
)
