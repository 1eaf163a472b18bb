from __future__ import annotations

from pathlib import Path

import pytest
from turkish_prose import prose

from mm_rec.cleaning.calibration import calibrate
from mm_rec.cleaning.document import CleaningDocument
from mm_rec.cleaning.measures import MEASURES
from mm_rec.cli.main import run as mmrec
from mm_rec.errors import DataError
from mm_rec.text.languages import get_language

TEXTS = [prose(seed, sentences=2 if seed < 20 else 12) for seed in range(400)]  # a twentieth are short


def test_a_limit_that_takes_more_than_a_hundredth_moves_to_where_it_takes_one():
    found = {item.rule.rule: item for item in calibrate(TEXTS, "tr")}
    words = found["gopher_words"]
    counts = sorted(MEASURES["words"](CleaningDocument(text, get_language("tr"))) for text in TEXTS)
    assert words.rule.min == 50  # the published limit, not the one that is in force
    assert words.removed_share == sum(count < 50 for count in counts) / 400 > 0.01
    assert words.min is not None and sum(count < words.min for count in counts) <= 4
    assert words.max == words.rule.max
    assert words.quantiles[0.5] == pytest.approx((counts[199] + counts[200]) / 2)


def test_a_limit_that_takes_less_stays():
    found = {item.rule.rule: item for item in calibrate(TEXTS, "tr")}
    assert found["gopher_top_2_gram"].removed_share <= 0.01
    assert found["gopher_top_2_gram"].max == found["gopher_top_2_gram"].rule.max


def test_too_few_documents_say_nothing():
    with pytest.raises(DataError, match=r"200 good documents.*these are 20"):
        calibrate(TEXTS[:20], "tr")


def test_the_command_shows_which_limits_would_move(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "good.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    assert mmrec(["data", "calibrate", str(tmp_path / "good.txt"), "--documents", "blank-line"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "gopher_words" in line)
    assert "50 …" in line and "5.0%" in line
