"""Turkish prose made up for tests: correct sentences that pass every cleaning rule, different for each seed."""

from __future__ import annotations

import random

NOUNS = (
    "kedi", "ev", "deniz", "dağ", "kitap", "kuş", "ağaç", "yol", "şehir", "çocuk", "bahçe", "gemi", "köprü", "kalem",
    "okul", "nehir", "rüzgâr", "gece", "sabah", "masa",
)  # fmt: skip
VERBS = (
    "gördü", "sevdi", "aradı", "buldu", "anlattı", "yazdı", "bekledi", "düşündü", "çizdi", "taşıdı", "onardı", "unuttu",
    "özledi", "topladı", "sakladı",
)  # fmt: skip
PLACES = ("köyde", "evde", "okulda", "denizde", "bahçede", "sokakta", "ormanda", "adada", "parkta", "şehirde")
NAMES = ("Ayşe", "Kemal", "Işık", "Zeynep", "Ali", "Deniz", "Çağla", "Şule", "Ömer", "Gül")


def prose(seed: int, sentences: int = 12) -> str:
    """Paragraphs of three sentences, a line each."""
    chance = random.Random(seed)
    made = [_sentence(chance) for _ in range(sentences)]
    return "\n".join(" ".join(made[start : start + 3]) for start in range(0, sentences, 3))


def _sentence(chance: random.Random) -> str:
    first, second = chance.sample(NOUNS, 2)
    name, verb, other = chance.choice(NAMES), chance.choice(VERBS), chance.choice(VERBS)
    place, number = chance.choice(PLACES), chance.randrange(2, 90)
    return chance.choice(
        (
            f"{name} o gün {place} bir {first} ile {second} {verb} ve {number} yıl sonra da bunu yine {other}.",
            f"Sabah erkenden {place} yalnız kalan {name}, {number} {first} için çok eski bir {second} {verb}.",
            f"Bu {first} herkesten uzakta, {place} dururdu; fakat {name} onu her {number} günde bir {verb}.",
            f"Gece olunca {second} kadar güzel olan {first} {verb}, ama {name} bunu {place} kimseye söylemedi.",
            f"“{name}, {number} {second} daha lazım,” diyen çocuk {place} gördüğü {first} yüzünden geç {other}.",
            f"Sonra {place} {number} kişi toplandı ve {name} hepsine {first} hakkında ne düşündüğünü sordu.",
        )
    )
