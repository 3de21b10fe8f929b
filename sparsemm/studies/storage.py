"""Study: 8-bit storage, at equal slots and at equal bytes."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from sparsemm.evaluate.rows import Arm, Row
from sparsemm.params.studies import MethodsParams
from sparsemm.policies import policy_class
from sparsemm.studies import Rows, Study, compared, sentence

if TYPE_CHECKING:
    from sparsemm.studies.common.experiment import Experiment


class StorageParams(MethodsParams):
    """The 8-bit format."""

    storage: Literal["int8", "fp8"] = "int8"


def slots_at_equal_bytes(model: Any, budget: int) -> int:
    """Returns how many slots in 8 bits take no more bytes than `budget` slots in the model's dtype.

    A key or a value takes D bytes and an fp32 scale. That gives about twice as many slots as in 16 bits, and 3.2 times
    as many as in 32 bits for heads of 16 numbers.
    """
    config = model.config.get_text_config()
    numbers = 2 * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return budget * numbers * model.dtype.itemsize // (numbers + 8)


def conclusion(rows: Rows) -> str:
    """Compares 8 bits with the model's own dtype, at equal slots and at equal bytes."""
    conditions = dict.fromkeys(row.condition for row in rows if row.verdict)
    parts = [f"{name}, {compared(row for row in rows if row.condition == name)}" for name in conditions]
    return sentence("Against storage in the model's own dtype: ", parts)


def run(experiment: Experiment, options: StorageParams) -> list[Row]:
    """Returns one row per task, method, budget and storage; 8 bits are compared with the model's own dtype."""
    own, same, more = "model dtype", f"{options.storage}, equal slots", f"{options.storage}, equal bytes"
    arms = {}
    for task, budget, method in product(options.tasks, options.budgets, options.methods):
        arm = Arm(task, own, method, None, budget)
        arms[arm] = experiment.variant(method, budget)
        arms[arm._replace(condition=same)] = experiment.variant(method, budget, storage=options.storage)
        if policy_class(method).compresses:
            wide = slots_at_equal_bytes(experiment.model, budget)
            arms[arm._replace(condition=more)] = experiment.variant(method, wide, storage=options.storage)
    return experiment.rows(
        experiment.measure(arms), lambda arm: [] if arm.condition == own else [arm._replace(condition=own)]
    )


STUDY = Study(
    params=StorageParams,
    run=run,
    title="8 bits",
    question="Keys and values are stored in 8 bits with a scale per row: at equal slots, and with as many more slots "
    "as fit the same bytes.",
    conclusion=conclusion,
    headline=lambda row: True,
)
