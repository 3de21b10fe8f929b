"""Hit rates by what is on the page."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsemm.chase.covariates import Rates, bins_of, covariates, script, write_covariates
from sparsemm.chase.shards import join_shards, shard_of_sample
from sparsemm.datasets.records import Entry, Record


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Straße", "latin"),
        ("東京2020", "cjk"),
        ("Москва!", "cyrillic"),
        ("مرحبا", "arabic"),
        ("ab中文", "cjk"),  # as many letters of each
        ("12:30", "digits"),
        ("!?", "other"),
    ],
)
def test_script_is_that_of_most_letters(text: str, wanted: str) -> None:
    assert script(text) == wanted


def test_sizes_are_binned_by_powers_of_two() -> None:
    entry = Entry("word", (10.0, 10.0, 26.0, 17.9), "word")
    assert bins_of(entry, 3) == {
        "kind": "word",
        "script": "latin",
        "box_height_px": "4-8",
        "box_area_px": "64-128",
        "visual_tokens": "2-4",
    }
    assert bins_of(Entry("w", (0.0, 0.0, 0.1, 0.1), "word"), 1)["box_area_px"] == "1-2"


def test_rates_are_means_over_tokens_and_heads(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 64))
    entries = (Entry("one", (0.0, 0.0, 8.0, 8.0), "word"), Entry("22", (0.0, 0.0, 32.0, 32.0), "number"))
    records = [Record(name, image, entries, "test", "none") for name in "ab"]
    # Four heads; the first is the best. Sample a says a word and a number, sample b a number.
    first = np.array([[[1, 0], [0, 0], [1, 0], [0, 0]]], bool)
    second = np.array([[[1], [0], [0], [1]]], bool)
    parts = [shard_of_sample(first, [np.arange(1), np.arange(16)], [0, 1], [2, 2, 2])]
    parts.append(shard_of_sample(second, [np.arange(16)], [1], [1, 1, 1]))
    rows = covariates(join_shards(parts), records, np.array([[9.0, 0.0, 1.0, 1.0]]))
    found = {row[:2]: row[2:] for row in rows}
    assert found["kind", "word"] == (1, 1, 1.0, 1.0, 1.0, 0.5)
    assert found["kind", "number"] == (2, 2, 0.5, 0.0, 1.0, 0.25)  # one sample hit, the other not
    assert found["script", "digits"] == found["box_height_px", "32-64"] == found["visual_tokens", "16-32"]
    assert [row.bin for row in rows if row.covariate == "visual_tokens"] == ["1-2", "16-32"]  # by size, not by letters
    write_covariates(tmp_path / "c.csv", join_shards(parts), records, np.array([[9.0, 0.0, 1.0, 1.0]]))
    listed = list(csv.DictReader((tmp_path / "c.csv").read_text().splitlines()))
    assert tuple(listed[0]) == Rates._fields and len(listed) == len(rows)
    assert sum(int(row["tokens"]) for row in listed if row["covariate"] == "script") == 3


def test_intervals_are_over_samples_not_over_tokens() -> None:
    image, entry = Image.new("RGB", (64, 64)), Entry("one", (0.0, 0.0, 8.0, 8.0), "word")
    hits = np.random.default_rng(1).random(12) < 0.5

    def width(tokens: int) -> float:
        parts = []
        for hit in hits:  # every token of a sample is like the others
            inside = np.zeros((1, 20, tokens), bool)
            inside[0, 0] = hit
            parts.append(shard_of_sample(inside, [np.arange(1)] * tokens, [0] * tokens, [tokens] * 3))
        scores = np.zeros((1, 20))
        scores[0, 0] = 1.0
        records = [Record(str(i), image, (entry,), "test", "none") for i in range(len(hits))]
        (row,) = [row for row in covariates(join_shards(parts), records, scores) if row.covariate == "kind"]
        assert row.ci_low < row.top_heads == hits.mean() < row.ci_high and row.samples == 12
        assert row.tokens == 12 * tokens
        return row.ci_high - row.ci_low

    assert width(1) == pytest.approx(width(8))
