"""Tables are halved and compared."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from sparsemm.errors import ScoreTableError
from sparsemm.files import result_path
from sparsemm.scores import ScoreTable
from sparsemm.studies.common.agreement import agreement
from sparsemm.studies.sources import SourcesParams, half, run

RNG = np.random.default_rng(0)


def table(per_sample=None, **header):
    per_sample = RNG.random((8, 5, 4)) if per_sample is None else per_sample
    given = {"model": "m", "revision": None, "fingerprint": "f", "num_kv_heads": 2, "dataset": "other"} | header
    return ScoreTable.from_samples(per_sample, np.zeros((5, 4), np.int64), given)


def test_halves_add_up_to_the_whole():
    whole = table()
    assert np.allclose(half(whole, 0).scores + half(whole, 1).scores, whole.scores)


def test_agreement_is_high_for_one_ranking_and_low_for_two():
    strong = np.arange(20.0).reshape(5, 4) ** 2
    noisy = lambda: strong + RNG.random((30, 5, 4))  # noqa: E731
    value, low, high = agreement(table(noisy()), table(noisy()), 0)["rank correlation"]
    assert low <= value <= high and low > 0.9
    value, low, high = agreement(table(), table(), 0)["rank correlation"]
    assert high < 0.9 and high - low > 0.1
    value, low, high = agreement(table(strong * 50 + RNG.random((9, 5, 4))), table(strong + RNG.random((9, 5, 4))), 1)[
        "rank correlation"
    ]
    assert low <= value <= high <= 1.0
    same = table()
    assert agreement(same, same, 0)["top 5 % overlap"][0] == 1.0


def test_a_table_that_is_missing_or_of_another_model_is_refused(tmp_path):
    params = SimpleNamespace(robustness={"signs": None})
    experiment = SimpleNamespace(root=tmp_path, key="m", scores=table(), params=params)
    given = SourcesParams(samples=2, budgets=(12,))
    with pytest.raises(ScoreTableError, match="no score table.*sparsemm chase m --dataset signs"):
        run(experiment, given)
    table(fingerprint="g").save(result_path(tmp_path, "scores", "m", ".safetensors", "signs"))
    with pytest.raises(ScoreTableError, match="another config"):
        run(experiment, given)
