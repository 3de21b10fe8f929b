"""8-bit storage: what it costs at equal slots, and what its room buys at equal bytes."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from sparsemm.evaluate.rows import Arm, Row
from sparsemm.params.studies import MethodsParams
from sparsemm.policies import policy_class
from sparsemm.studies import Rows, Study, compared, sentence

if TYPE_CHECKING:
    from sparsemm.studies.common.bench import Bench


class StorageParams(MethodsParams):
    """8-bit storage, at equal slots and at equal bytes."""

    storage: Literal["int8", "fp8"] = "int8"


def slots_at_equal_bytes(model: Any, budget: int) -> int:
    """Slots of D bytes and an fp32 scale, for each key and value, that take no more room than `budget` of the model's.

    About twice as many as in 16 bits, 3.2 times for heads of 16 numbers in 32.
    """
    config = model.config.get_text_config()
    numbers = 2 * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return budget * numbers * model.dtype.itemsize // (numbers + 8)


def conclusion(rows: Rows) -> str:
    """8 bits against the model's own dtype, at equal slots and at equal bytes."""
    conditions = dict.fromkeys(row.condition for row in rows if row.verdict)
    parts = [f"{name}, {compared(row for row in rows if row.condition == name)}" for name in conditions]
    return sentence("Against storage in the model's own dtype: ", parts)


def run(bench: Bench, given: StorageParams) -> list[Row]:
    """One row per task, method, budget and storage; 8 bits are compared with the model's own dtype, same method."""
    own, same, more = "model dtype", f"{given.storage}, equal slots", f"{given.storage}, equal bytes"
    ways = {}
    for task, budget, method in product(given.tasks, given.budgets, given.methods):
        arm = Arm(task, own, method, None, budget)
        ways[arm] = bench.variant(method, budget)
        ways[arm._replace(condition=same)] = bench.variant(method, budget, storage=given.storage)
        if policy_class(method).compresses:
            wide = slots_at_equal_bytes(bench.model, budget)
            ways[arm._replace(condition=more)] = bench.variant(method, wide, storage=given.storage)
    return bench.rows(bench.measure(ways), lambda arm: [] if arm.condition == own else [arm._replace(condition=own)])


STUDY = Study(
    params=StorageParams,
    run=run,
    title="8 bits",
    question="Keys and values are stored in 8 bits with a scale per row: at equal slots, and with as many more slots "
    "as fit the same bytes.",
    conclusion=conclusion,
    headline=lambda row: True,
)
