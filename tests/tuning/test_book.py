"""What was measured, on paper: under its conditions, and under no others."""

from __future__ import annotations

import pytest

from lifedeploy.tuning.book import Book, Divergence, Probe

PROBE = Probe(time=0.5, low=0.4, high=0.6, rounds=7, seconds=15.0)
HERE = {"machine": {"processor": "a"}, "batch": 1, "shape": [3, None]}


@pytest.fixture
def book(tmp_path):
    book = Book(tmp_path / "tuning")
    assert book.probes(HERE) == {} and book.divergences(HERE) == {}
    book.keep_probes(HERE, {16: PROBE})
    book.keep_divergences(HERE, {"5 tokens": Divergence(kl=0.1, agreement=0.9)})
    return book


def test_it_is_read_again(book):
    again = Book(book.folder)
    assert again.probes(HERE) == {16: PROBE}
    assert again.divergences(HERE) == {"5 tokens": Divergence(kl=0.1, agreement=0.9)}


@pytest.mark.parametrize("change", [{"batch": 2}, {"machine": {"processor": "b"}}, {"more": 1}])
def test_other_conditions_have_a_page_of_their_own(book, change):
    assert book.probes(HERE | change) == {}
    book.keep_probes(HERE | change, {8: PROBE})
    assert book.probes(HERE) == {16: PROBE}


def test_what_was_there_before_is_passed_over_if_asked_for(book):
    fresh = Book(book.folder, fresh=True)
    assert fresh.probes(HERE) == {}
    fresh.keep_probes(HERE, {8: PROBE})
    assert fresh.probes(HERE) == {8: PROBE} == Book(book.folder).probes(HERE)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2, "conditions": {}, "entries": {}}', '{"schema": 1}'])
def test_pages_that_are_damaged_are_measured_again(book, text):
    for path in book.folder.iterdir():
        path.write_text(text)
    assert book.probes(HERE) == {} and book.divergences(HERE) == {}


def test_a_page_of_other_conditions_under_the_same_name_is_not_taken(book):
    (path,) = book.folder.glob("probes-*")
    path.write_text(path.read_text().replace('"batch": 1', '"batch": 4'))
    assert book.probes(HERE) == {}
