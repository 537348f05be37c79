"""The README's tables of methods are those of the results."""

from __future__ import annotations

import pytest

from benchmarks.methods import readme


def test_the_tables_are_what_was_measured():
    text = readme.README.read_text(encoding="utf-8")
    assert readme.filled(text) == text
    most = max(readme._reports().values(), key=lambda report: len(report["models"]))
    assert len(readme.speedups()) == len(most["models"]) + 2


def test_a_table_that_has_no_place_or_two_is_an_error():
    text = readme.README.read_text(encoding="utf-8")
    for changed in (text.replace("readme: same_rounds", ""), text + text):
        with pytest.raises(ValueError, match=r"is in the README [02] times"):
            readme.filled(changed)


def test_little_known_ratios_are_marked():
    row = {"speedup": 1.4, "speedup_low": 1.35, "speedup_high": 1.5}
    assert readme._ratio(row, "speedup") == "1.40"
    assert readme._ratio(row | {"speedup_high": 1.6}, "speedup") == "≈1.40"
    assert readme._ratio(row | {"speedup_low": 1.2}, "speedup") == "≈1.40"
    assert readme._ratio(None, "speedup") == readme._ratio({"speedup": None}, "speedup") == "–"
