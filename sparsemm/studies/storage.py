"""8-bit storage: what it costs at equal slots, and what its room buys at equal bytes."""

from __future__ import annotations

from typing import Any

from sparsemm.evaluate.model import slot_bytes
from sparsemm.params.studies import StorageParams
from sparsemm.policies import policy_class
from sparsemm.studies.bench import Bench
from sparsemm.studies.declaration import Rows, Study, compared, sentence
from sparsemm.studies.rows import Arm, Outcome, Row


def slots_at_equal_bytes(model: Any, budget: int) -> int:
    """Slots of D bytes and an fp32 scale, for each key and value, that take no more room than `budget` of the model's.

    About twice as many as in 16 bits, 3.2 times for heads of 16 numbers in 32.
    """
    row = slot_bytes(model)
    return budget * row // (row // model.dtype.itemsize + 8)


def conclusion(rows: Rows) -> str:
    """8 bits against the model's own dtype, at equal slots and at equal bytes."""
    conditions = dict.fromkeys(row.condition for row in rows if row.verdict)
    parts = [f"{name}, {compared(row for row in rows if row.condition == name)}" for name in conditions]
    return sentence("Against storage in the model's own dtype: ", parts)


STUDY = Study(
    title="8 bits",
    question="Keys and values are stored in 8 bits with a scale per row: at equal slots, and with as many more slots "
    "as fit the same bytes.",
    conclusion=conclusion,
    headline=lambda row: True,
)


def run(bench: Bench, given: StorageParams) -> list[Row]:
    """One row per task, method, budget and storage; 8 bits are compared with the model's own dtype, same method."""
    outcomes: dict[Arm, Outcome] = {}
    own, same, more = "model dtype", f"{given.storage}, equal slots", f"{given.storage}, equal bytes"
    for task in given.tasks:
        for budget in given.budgets:
            ways = {}
            for method in given.methods:
                ways[f"{method} {own}"] = bench.kept(method, budget)
                ways[f"{method} {same}"] = bench.kept(method, budget, storage=given.storage)
                if policy_class(method).compresses:
                    wide = slots_at_equal_bytes(bench.model, budget)
                    ways[f"{method} {more}"] = bench.kept(method, wide, storage=given.storage)
            for name, outcome in bench.keep(f"{task}-{budget}", task, ways).items():
                setting, condition = name.split(" ", 1)
                outcomes[Arm(task, condition, setting, None, budget)] = outcome
    return bench.rows(outcomes, lambda arm: [] if arm.condition == own else [arm._replace(condition=own)])
