"""Scores of predictions."""

from __future__ import annotations

import pytest

from sparsemm.errors import DataError
from sparsemm.evaluate.tasks.functions import exact_match, word_accuracy


@pytest.mark.parametrize(
    ("said", "wanted", "value"),
    [
        ("a b c d", "a b c d", 1.0),
        ("a b d", "a b c d", 0.75),
        ("a b x d", "a b c d", 0.75),
        ("a b c c d", "a b c d", 0.75),
        ("", "a b", 0.0),
        ("x y z w q", "a b", 0.0),
        ("b a", "a b", 0.0),
    ],
)
def test_word_accuracy(said, wanted, value):
    assert word_accuracy(said, wanted) == pytest.approx(value)


def test_an_empty_reference_is_refused():
    with pytest.raises(DataError, match="empty"):
        word_accuracy("a", " ")


def test_exact_match():
    assert exact_match(" ab\n", "ab") == 1.0 and exact_match("ab", "abc") == 0.0
