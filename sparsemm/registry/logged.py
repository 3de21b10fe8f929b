"""Params and metrics of a publication's run, under MLflow's flat names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsemm.errors import DataError, RegistryError
from sparsemm.params import Params
from sparsemm.registry.lockfile import STALE
from sparsemm.tables import Row, read_rows


class Timing(Row):
    """The published columns of a row of artifacts/profile/<key>.csv."""

    method: str
    prompt_length: int
    prefill_ms: float
    decode_ms_per_token: float
    kept_bytes: int


def flat_params(params: Params, key: str) -> dict[str, str]:
    """Returns the run's params as `section/name`, from the model's entry, chase, allocate and evaluate."""
    params = params.of(key)
    sections = {"model": params.model(key), "chase": params.chase, "allocate": params.allocate}
    sections["evaluate"] = params.evaluate
    flat = [pair for name, section in sections.items() for pair in _flat(section.model_dump(mode="json"), name)]
    return {metric_name(name): value if isinstance(value, str) else json.dumps(value) for name, value in flat}


def measured(key: str, folder: Path) -> tuple[dict[tuple[str, int], float], dict[str, Any]]:
    """Returns the run's metrics, and the profile stage's description of its machine.

    Metrics have a name and a step, over which MLflow draws curves: `accuracy/task/method` over the budget (0 without
    one), `cost/method/column` over the prompt length, and `scores/...` and `align/...` at step 0. MLflow groups them by
    what comes before the last slash. Raises RegistryError if a file does not have the format of its stage.
    """

    def read(name: str) -> Any:
        return json.loads((folder / name / f"{key}.json").read_text(encoding="utf-8"))

    values: dict[tuple[str, int], Any] = {}
    try:
        machine = dict(read("profile").items())
        for name in ("scores", "align"):
            values.update({(flat, 0): value for flat, value in _flat(read(name), name)})
        for task, methods in read("evaluate").items():
            for method, budgets in methods.items():
                for budget, value in budgets.items():
                    values[f"accuracy/{task}/{method}", int(budget) if budget.isdecimal() else 0] = value
        for row in read_rows(folder / "profile" / f"{key}.csv", Timing):
            for column, value in row.model_dump(exclude={"method", "prompt_length"}).items():
                values[f"cost/{row.method}/{column}", row.prompt_length] = value
    except (ValueError, KeyError, TypeError, AttributeError, DataError) as error:
        raise RegistryError(f"a table is malformed: {error!r}", where=key, hint=STALE) from error
    numbers = {key: float(value) for key, value in values.items() if isinstance(value, int | float)}
    return {(metric_name(name), step): value for (name, step), value in numbers.items()}, machine


def metric_name(name: str) -> str:
    """Returns the name that MLflow takes for a metric: `sparsemm+peak` is "sparsemm with peak", and % is "pct"."""
    return re.sub(r"[^\w\-.: /]", "_", name.replace("+", " with ").replace("%", "pct"), flags=re.ASCII)


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}/{key}")
    else:
        yield prefix, value
