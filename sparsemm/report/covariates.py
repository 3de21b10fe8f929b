"""Do the best heads look at small words as well as at large ones, whatever the script and the kind of text?"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from sparsemm.chase.covariates import Rates
from sparsemm.errors import DataError
from sparsemm.report.picture import WIDTH, Figure, png

Found = dict[str, list[Rates]]


def read_covariates(path: Path) -> list[Rates]:
    """Rows of a covariates file; none if the file is missing.

    Raises:
        DataError: if it is not what the chase stage writes.
    """
    if not path.is_file():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            header, *rows = list(csv.reader(handle))
        if tuple(header) != Rates._fields:
            raise ValueError(f"columns are {header}")
        return [_rates(*row) for row in rows]
    except (ValueError, TypeError, csv.Error) as error:
        hint = "run the chase stage again"
        raise DataError(f"not what the chase stage writes: {error}", where=str(path), hint=hint) from error


def _rates(covariate: str, value: str, samples: str, tokens: str, top: str, low: str, high: str, every: str) -> Rates:
    return Rates(covariate, value, int(samples), int(tokens), float(top), float(low), float(high), float(every))


def bars(found: Found) -> bytes:
    """Rate and interval of every bin, bins down, data set beside data set."""
    names = list(dict.fromkeys((row.covariate, row.bin) for rows in found.values() for row in rows))
    names.sort(key=lambda name: name[0])  # stable: a covariate together, its bins as they come
    drawn = Figure(figsize=(WIDTH, 1.2 + 0.28 * len(names)), layout="constrained")
    axes = drawn.subplots()
    for number, (name, rows) in enumerate(found.items()):
        at = np.array([names.index((row.covariate, row.bin)) for row in rows]) + 0.3 * (number / len(found))
        rates = 100 * np.array([row.top_heads for row in rows])
        ends = 100 * np.array([(row.ci_low, row.ci_high) for row in rows]).T
        # A percentile interval need not hold the rate itself, and one sample has none.
        spread = np.clip([rates - ends[0], ends[1] - rates], 0, None)
        spread[:, [row.samples < 2 for row in rows]] = np.nan
        axes.errorbar(rates, at, xerr=spread, fmt="os^Dv"[number % 5], color=f"C{number}", capsize=2, label=name)
    axes.set_yticks(range(len(names)), [words(*name) for name in names])
    axes.set(xlabel="tokens hit, %", xlim=(0, 100))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    return png(drawn)


def words(covariate: str, value: str) -> str:
    """A bin as the page says it."""
    return f"{covariate.replace('_', ' ')} {value}"
