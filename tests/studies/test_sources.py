"""Tables of other data sets: found, compared, refused."""

from __future__ import annotations

import numpy as np
import pytest

from sparsemm.errors import ScoreTableError
from sparsemm.scores import ScoreTable
from sparsemm.studies.sources import agreement, half, other_tables

RNG = np.random.default_rng(0)


def table(per_sample=None, **header):
    per_sample = RNG.random((8, 5, 4)) if per_sample is None else per_sample
    given = {"model": "m", "revision": None, "fingerprint": "f", "num_kv_heads": 2, "dataset": "other"} | header
    return ScoreTable.from_samples(per_sample, np.zeros((5, 4), np.int64), given)


def test_halves_add_up_to_the_whole():
    whole = table()
    assert np.allclose(half(whole, 0).scores + half(whole, 1).scores, whole.scores)


def test_tables_of_a_model_are_found_by_data_set(tmp_path):
    own = table()
    table().save(tmp_path / "ctw" / "m.safetensors")
    table(dataset="coco").save(tmp_path / "m" / "coco.safetensors")
    table().save(tmp_path / "ctw" / "n.safetensors")
    assert sorted(other_tables(tmp_path, "m", own)) == ["coco", "other"]
    assert other_tables(tmp_path / "nothing", "m", own) == {}
    table(fingerprint="g").save(tmp_path / "mlt" / "m.safetensors")
    with pytest.raises(ScoreTableError, match="another config"):
        other_tables(tmp_path, "m", own)
    for name in (None, "own", 3):
        table(dataset=name).save(tmp_path / "mlt" / "m.safetensors")
        with pytest.raises(ScoreTableError, match="no data set"):
            other_tables(tmp_path, "m", own)


def test_agreement_is_high_for_one_ranking_and_low_for_two():
    strong = np.arange(20.0).reshape(5, 4) ** 2
    noisy = lambda: strong + RNG.random((30, 5, 4))  # noqa: E731
    value, low, high = agreement(table(noisy()), table(noisy()), 0)["rank correlation"]
    assert low <= value <= high and low > 0.9
    value, low, high = agreement(table(), table(), 0)["rank correlation"]
    assert high < 0.9 and high - low > 0.1
    same = table()
    assert agreement(same, same, 0)["top 5 % overlap"][0] == 1.0
