"""API keys: what is let in and what is not, limits, and the commands."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from mm_rec.cli.keys import app
from mm_rec.errors import ConfigError
from mm_rec.serving.api_keys import RateLimiter, create_key, verify_key
from mm_rec.serving.usage import UsageRecorder
from mm_rec.store.store import Store, today
from mm_rec.terminal import run_app

Opener = Callable[[str], Store]


def run(*arguments: str) -> int:
    return run_app(app, "mmrec", [*arguments])


def test_a_key_is_let_in_and_only_its_hash_is_kept(url: str, store: Store) -> None:
    key_text, key = create_key(store, "Ayşe's laptop")
    found = verify_key(store, key_text)
    assert found is not None and (found.id, found.name) == (key.id, "Ayşe's laptop")
    assert re.fullmatch(r"mmr-[\w-]{43}", key_text) and key_text.startswith(found.prefix)
    engine = create_engine(url)
    with engine.connect() as connection:
        kept = str(connection.execute(text("SELECT * FROM mmrec_api_keys")).all())
    engine.dispose()
    assert found.prefix in kept and key_text[len(found.prefix) :] not in kept


def test_keys_are_all_different(store: Store) -> None:
    made = {create_key(store, "same name")[0] for _ in range(20)}
    assert len(made) == 20 and len({key.id for key in store.list_keys()}) == 20


def test_what_is_no_key_is_not_let_in(store: Store) -> None:
    good, _ = create_key(store, "a")
    other, _ = create_key(store, "b")
    wrong = {
        "empty": "",
        "malformed": "mmr-short",
        "without its beginning": good[4:],
        "with a space": f"{good} ",
        "with a line end": f"{good}\n",
        "very long": good + "x" * 5_000_000,
        "a zero byte": f"{good[:-1]}\0",
        "a lone surrogate": f"{good[:-1]}\ud800",
        "other letters": f"{good[:-1]}ş",
        "unknown": "mmr-" + "A" * 43,
        "the right beginning with another end": good[:16] + other[16:],
        "one letter off": good[:-1] + ("A" if good[-1] != "A" else "E"),
        "upper case": good.upper(),
        "SQL": "mmr-' OR '1'='1",
    }
    assert {what for what, key_text in wrong.items() if verify_key(store, key_text)} == set()
    assert verify_key(store, good) is not None


def test_a_key_of_another_store_is_not_let_in(store: Store, opened: Opener, tmp_path: Path) -> None:
    foreign, _ = create_key(opened(f"sqlite:///{tmp_path}/other.db"), "foreign")
    assert verify_key(store, foreign) is None


def test_a_revoked_key_is_not_let_in_again_and_keeps_the_time(store: Store) -> None:
    (first, key), (second, _) = create_key(store, "a"), create_key(store, "b")
    before = int(time.time())
    revoked = store.revoke_key(key.id)
    assert revoked is not None and before <= (revoked.revoked or 0) <= time.time()
    assert verify_key(store, first) is None and verify_key(store, second) is not None
    again = store.revoke_key(key.id)
    assert again is not None and again.revoked == revoked.revoked


def test_a_key_ends_when_it_expires(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.time()
    monkeypatch.setattr(time, "time", lambda: start)
    key_text, key = create_key(store, "a", expires_in=3_600)
    assert verify_key(store, key_text) is not None
    monkeypatch.setattr(time, "time", lambda: start + 3_598)
    assert verify_key(store, key_text) is not None
    monkeypatch.setattr(time, "time", lambda: start + 3_602)
    assert verify_key(store, key_text) is None
    assert key.expires is not None and abs(key.expires - start - 3_600) < 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": " "}, "no name of a key"),
        ({"name": "a\0"}, "no name of a key"),
        ({"name": "a" * 101}, "no name of a key"),
        ({"expires_in": 0}, "expires-in 0 is not between 1 and 3,153,600,000 seconds"),
        ({"requests_per_minute": 0}, "requests-per-minute 0 is not between 1 and"),
        ({"tokens_per_day": 10**30}, "tokens-per-day .* is not between 1 and"),
    ],
)
def test_a_key_that_cannot_be_is_refused(store: Store, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_key(store, **({"name": "a"} | values))  # type: ignore[arg-type]
    assert store.list_keys() == []


def test_requests_are_limited_in_any_sixty_seconds(store: Store) -> None:
    now = 0.0
    limiter = RateLimiter(UsageRecorder(store), clock=lambda: now)
    _, key = create_key(store, "a", requests_per_minute=3)
    _, other = create_key(store, "b", requests_per_minute=3)

    def wait_at(seconds: float) -> int:
        nonlocal now
        now = seconds
        refusal = limiter.hit(key)
        assert refusal is None or refusal.kind == "requests"
        return 0 if refusal is None else refusal.retry_after

    assert [wait_at(t) for t in (1_000, 1_010, 1_050)] == [0, 0, 0]
    assert [wait_at(t) for t in (1_050, 1_059.9)] == [10, 1]
    assert limiter.hit(other) is None
    assert [wait_at(t) for t in (1_060, 1_060.5, 1_070, 1_071)] == [0, 10, 0, 39]
    assert [wait_at(2_000) for _ in range(4)] == [0, 0, 0, 60]
    refusal = limiter.hit(key)
    assert refusal is not None
    assert refusal.message == "this key may make 3 requests a minute; ask again in 60 seconds"


def test_tokens_are_limited_by_day(store: Store) -> None:
    limiter = RateLimiter(UsageRecorder(store))
    _, key = create_key(store, "a", tokens_per_day=100)
    store.count_usage(key.id, today() - timedelta(days=1), 500, 500)
    store.count_usage(key.id, today(), 90, 9)
    assert limiter.hit(key) is None
    store.count_usage(key.id, today(), 0, 1)
    refusal = limiter.hit(key)
    assert refusal is not None and refusal.kind == "tokens" and 1 <= refusal.retry_after <= 86_400
    assert "may use 100 tokens a day and has used 100 today" in refusal.message


def test_a_key_without_limits_is_not_limited(store: Store) -> None:
    _, key = create_key(store, "a")
    store.count_usage(key.id, today(), 10**12, 0)
    limiter = RateLimiter(UsageRecorder(store))
    assert all(limiter.hit(key) is None for _ in range(1_000))


def test_the_commands_make_list_and_revoke_a_key(
    url: str, opened: Opener, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--expires-in", "30d", "--requests-per-minute", "60", "--tokens-per-day", "100000"]
    assert run("create", "Ayşe", *options, "--store", url) == 0
    printed = capsys.readouterr()
    key_text = printed.out.strip()
    assert "cannot be shown again" in printed.err and key_text not in printed.err
    store = opened(url)
    key = verify_key(store, key_text)
    assert key is not None and (key.requests_per_minute, key.tokens_per_day) == (60, 100_000)
    assert key.expires == key.created + 30 * 86_400
    store.count_usage(key.id, today(), 1_000, 234)

    assert run("list", "--store", url) == 0
    listed = capsys.readouterr().out
    row = next(line for line in listed.splitlines() if "Ayşe" in line)
    assert key.id in row and "in force until" in row and "100,000" in row and "1,234" in row
    assert key.prefix in row and key_text not in listed

    assert run("revoke", key.id, "--store", url) == 0
    assert verify_key(store, key_text) is None
    capsys.readouterr()
    assert run("list", "--store", url) == 0
    assert "revoked 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "a", "--expires-in", "soon"], "'soon' is no time: write it like 90m, 12h, 30d or 8w"),
        (["create", "a", "--expires-in", "0d"], "expires-in 0 is not between 1"),
        (["create", "a", "--tokens-per-day", "-5"], "Invalid value for '--tokens-per-day'"),
        (
            ["create", "a", "--tokens-per-day", "9" * 18],
            "tokens-per-day 999,999,999,999,999,999 is not between 1",
        ),
        (["revoke", "key_1"], "there is no key 'key_1' in sqlite:///"),
    ],
)
def test_the_commands_refuse_in_plain_words(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, "--store", f"sqlite:///{tmp_path}/store.db") == 2
    assert message in capsys.readouterr().err


def test_a_list_without_keys_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("list") == 0
    assert "no keys in sqlite:///serving/store.db; mmrec keys create NAME" in capsys.readouterr().err
    assert (tmp_path / "serving/store.db").exists()
