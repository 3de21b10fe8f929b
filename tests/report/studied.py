"""Rows of a crafted study."""

from __future__ import annotations

import numpy as np

from sparsemm.studies.rows import Arm, Outcome, tabulate

RNG = np.random.default_rng(0)
BASE = RNG.random(60)


def rows(name="curve", key="m", task="read", gain=0.2):
    outcomes = {}
    for budget, more in ((12, gain), (24, 0.0)):
        outcomes[Arm(task, "", "snapkv", None, budget)] = Outcome(BASE, "accuracy")
        outcomes[Arm(task, "", "sparsemm", None, budget)] = Outcome(BASE + more, "accuracy")
    outcomes[Arm(task, "", "full")] = Outcome(BASE + 0.3, "accuracy")
    options = {"resamples": 100, "seed": 0, "precision": 0.05}
    compared = lambda arm: [arm._replace(setting="snapkv")]  # noqa: E731
    return [
        {column: str(value) for column, value in row.items()}
        for row in tabulate({"model": key, "study": name}, outcomes, compared, **options)
    ]
