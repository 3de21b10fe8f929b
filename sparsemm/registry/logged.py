"""Params and metrics of a publication's run, under MLflow's flat names."""

from __future__ import annotations

import json
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
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in flat}


def measured(key: str, folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Returns the run's metrics, and the profile stage's description of its machine.

    MLflow's pages group metrics by the first part of their names: `accuracy/task/method/budget`,
    `cost/method/length/column`, `scores/...` and `align/...`.

    Raises:
        RegistryError: if a file does not have the format of its stage.
    """

    def read(name: str) -> Any:
        return json.loads((folder / name / f"{key}.json").read_text(encoding="utf-8"))

    values: dict[str, Any] = {}
    try:
        machine = dict(read("profile").items())
        for name in ("scores", "align"):
            values.update(_flat(read(name), name))
        for task, methods in read("evaluate").items():
            values.update(_flat(methods, f"accuracy/{task}"))
        for row in read_rows(folder / "profile" / f"{key}.csv", Timing):
            values.update(
                _flat(row.model_dump(exclude={"method", "prompt_length"}), f"cost/{row.method}/{row.prompt_length}")
            )
    except (ValueError, KeyError, TypeError, AttributeError, DataError) as error:
        raise RegistryError(f"a table is malformed: {error!r}", where=key, hint=STALE) from error
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}, machine


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}/{key}")
    else:
        yield prefix.replace("%", "pct"), value
