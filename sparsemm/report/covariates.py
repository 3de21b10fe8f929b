"""Do the best heads look at small words as well as at large ones, whatever the script and the kind of text?"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from sparsemm.chase.covariates import Rates
from sparsemm.errors import DataError
from sparsemm.files import artifacts
from sparsemm.params import Params
from sparsemm.report.figures import WIDTH, png
from sparsemm.report.page import details, figure, heading, paragraph, section, table
from sparsemm.report.results import Results

ANCHOR, TITLE = "covariates", "What do the best heads hit?"
HEADER = ("what is on the page", "samples", "answer tokens", "best 5 % of heads", "95 % interval", "all heads")
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


def covariates(params: Params, results: list[Results], root: Path, images: dict[str, bytes]) -> str:
    """Hit rates by size, script and kind of text, of every data set that was chased; empty where there is none.

    Raises:
        DataError: if a covariates file is not what the chase stage writes.
    """
    parts: list[str] = []
    for result in results:
        folders = {params.chase.dataset: None} | {name: name for name in params.robustness}
        paths = {
            name: artifacts(root, "scores", also) / f"{result.key}.covariates.csv" for name, also in folders.items()
        }
        found = {name: rows for name, path in paths.items() if (rows := read_covariates(path))}
        if found:
            image = images[f"covariates-{result.key}"] = bars(found)
            parts += [heading(result.name), figure(image, _said(result, found), CAPTION)]
            parts += [_table(result, name, rows) for name, rows in found.items()]
    note = (
        "The best heads are chosen on the same samples, so compare bins with each other. Only words that the model "
        "says are counted. Box height stands for font size where boxes are drawn around the text; lines of the pages "
        "drawn here are all as high, and what differs between their data sets is the size of the letters."
    )
    return section(ANCHOR, TITLE, *parts, paragraph(note, "note")) if parts else ""


CAPTION = (
    "Share of answer tokens at whose box the best 5 % of heads look, by what the text is; bars are 95 % bootstrap "
    "intervals over samples. Bins of one sample have none."
)


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
        # A percentile interval need not hold the rate itself.
        spread = np.clip([rates - ends[0], ends[1] - rates], 0, None)
        axes.errorbar(rates, at, xerr=spread, fmt="os^Dv"[number % 5], color=f"C{number}", capsize=2, label=name)
    axes.set_yticks(range(len(names)), [_words(*name) for name in names])
    axes.set(xlabel="tokens hit, %", xlim=(0, 100))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    return png(drawn)


def _words(covariate: str, value: str) -> str:
    return f"{covariate.replace('_', ' ')} {value}"


def _said(result: Results, found: Found) -> str:
    spans = []
    for name, rows in found.items():
        rates = [row.top_heads for row in rows]
        spans.append(f"{name}: {min(rates):.0%} to {max(rates):.0%}")
    return f"Dot plot: hit rate of the best heads of {result.key} by size, script and kind. {'; '.join(spans)}."


def _table(result: Results, name: str, rows: list[Rates]) -> str:
    listed = [
        [
            _words(row.covariate, row.bin),
            str(row.samples),
            str(row.tokens),
            f"{row.top_heads:.1%}",
            f"{row.ci_low:.1%} to {row.ci_high:.1%}" if row.samples > 1 else "-",
            f"{row.all_heads:.1%}",
        ]
        for row in rows
    ]
    return details(f"Table: {name}", table(HEADER, listed, f"{result.label}, {name}: share of answer tokens hit"))
