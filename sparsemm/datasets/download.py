"""The download stage: a declared data set becomes one parquet file of records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sparsemm.datasets.records import Record, write_records
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import ParamsError
from sparsemm.params import DatasetParams, Params
from sparsemm.progress import progress

STYLES = (PageStyle(1, 6, (3, 6)), PageStyle(2, 6, (6, 12)))  # one and two columns, two pages of each in turn


def records(given: DatasetParams) -> Iterator[Record]:
    """The records of a data set, in order; the same for the same params.

    Even and odd records have the same mix of styles, so that halves of a score table can be compared.
    """
    for index in range(given.samples):
        yield draw_record(given.split, given.seed, index, STYLES[index // 2 % len(STYLES)])


def run(params: Params, key: str, root: Path = Path(".")) -> None:
    """Write artifacts/datasets/<key>.parquet.

    Raises:
        ParamsError: if there is no such data set.
    """
    if key not in params.datasets:
        known = ", ".join(params.datasets) or "none yet"
        raise ParamsError(f"no data set {key!r}", where="params.yaml: datasets", hint=f"known: {known}")
    given = params.datasets[key]
    shown = progress(records(given), given.samples, f"download {key}")
    write_records(root / "artifacts" / "datasets" / f"{key}.parquet", shown)
