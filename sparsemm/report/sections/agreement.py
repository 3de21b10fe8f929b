"""How far the score tables of a model agree that come from several data sets, and what its hits depend on."""

from __future__ import annotations

import numpy as np

from sparsemm.report import charts
from sparsemm.report.agreement import most_share
from sparsemm.report.page import chart, details, heading, pair, paragraph, table
from sparsemm.report.results import Results
from sparsemm.report.sections.material import Material
from sparsemm.scores import ScoreTable

NOTE = "Two tables cannot agree better than each agrees with itself: the split-half correlation of either."
HEADER = ["model", "data set", "samples", "rank correlation", "top 5 % shared", "top 10 % shared", "split-half r"]


def parts(material: Material) -> list[str]:
    """Rank correlation and overlap of the best heads, heat maps side by side, then hit rates by kind of text.

    Nothing where there is neither another table nor a covariates file.
    """
    known = material.params.chase.dataset
    found, rows = [], []
    for result in material.results:
        agreement = material.agreements.get(result.key)
        if agreement is None:
            continue
        if agreement.tables:
            rows += [_row(result, name, one) for name, one in agreement.tables.items()]
            found += [heading(result.name), _maps(result, {known: result.table, **agreement.tables})]
        if agreement.covariates:
            found.append(_covariates(result, agreement.covariates))
    if rows:
        found = [table(HEADER, rows, f"Every table against that of {known!r}"), paragraph(NOTE), *found]
    return found


def _row(result: Results, name: str, one: ScoreTable) -> list[str]:
    overlaps = [f"{result.table.top_overlap(one, fraction):.0%}" for fraction in (0.05, 0.10)]
    correlation = f"{result.table.rank_correlation(one):.3f}"
    return [result.label, name, str(len(one.per_sample)), correlation, *overlaps, f"{one.split_half():.3f}"]


def _maps(result: Results, tables: dict[str, ScoreTable]) -> str:
    most = most_share(tables)
    shown = []
    for name, one in tables.items():
        said = "" if one is result.table else f" Rank correlation {result.table.rank_correlation(one):.2f}."
        shown.append(
            chart(
                charts.heat_map(one, most),
                f"Heat map of visual scores of {result.key} over the data set {name}.{said}",
                f"{name}: share of the visual score of every head, all data sets on one scale.{said}",
            )
        )
    return pair(*shown)


def _covariates(result: Results, rows: list[list[str]]) -> str:
    listed = [
        [f"{name.replace('_', ' ')} {value}", n, f"{float(a):.1%}", f"{float(b):.1%}"] for name, value, n, a, b in rows
    ]
    header = ["what is on the page", "answer tokens", "best 5 % of heads", "all heads"]
    caption = f"{result.label}: share of answer tokens at whose box the heads look"
    rates = np.array([float(row[3]) for row in rows])
    spread = f"Hit rate of the best heads by size, script and kind of the text: {rates.min():.0%} to {rates.max():.0%}"
    return details(f"{result.name}: {spread}", table(header, listed, caption))
