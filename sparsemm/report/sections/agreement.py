"""How far the score tables of a model agree that come from several data sets, and what its hits depend on."""

from __future__ import annotations

from sparsemm.chase.covariates import Rates
from sparsemm.report import charts
from sparsemm.report.agreement import most_share
from sparsemm.report.covariates import words
from sparsemm.report.findings import at_least
from sparsemm.report.page import chart, details, heading, pair, paragraph, table
from sparsemm.report.results import Results
from sparsemm.report.sections.material import Material
from sparsemm.scores import ScoreTable

NOTE = "Two tables cannot agree better than each agrees with itself: the split-half correlation of either."
HEADER = [
    "model and data set",
    "rank correlation",
    "top 5 % shared",
    "top 10 % shared",
    "split-half r",
    "samples",
    "words read",
]

RATES = ["what is on the page", "best 5 % of heads", "95 % interval", "all heads", "samples", "answer tokens"]
RATES_NOTE = (
    "Share of answer tokens at whose box heads look, of words that the model says; bootstrap intervals over samples. "
    "The best heads are chosen on the same samples, so compare bins with each other. Box height stands for font size "
    "where boxes are drawn around the text{}."
)
DRAWN = "; lines of the pages drawn here are all as high, and what differs between data sets is the size of the letters"


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
            rows += [_row(result, name, one, agreement.words[name]) for name, one in agreement.tables.items()]
            found += [heading(result.name), _maps(result, {known: result.table, **agreement.tables})]
        found += [_rates(result, name, rates, _is_drawn(material, name)) for name, rates in agreement.rates.items()]
    if rows:
        found = [table(HEADER, rows, f"Every table against that of {known!r}"), paragraph(NOTE), *found]
    return found


def _row(result: Results, name: str, one: ScoreTable, words: float | None) -> list[str]:
    overlaps = [f"{result.table.top_overlap(one, fraction):.0%}" for fraction in (0.05, 0.10)]
    correlation = at_least(result.table.rank_correlation(one))
    read = "-" if words is None else f"{words:.1%}"
    sure = at_least(one.split_half())
    return [f"{result.label}, {name}", correlation, *overlaps, sure, str(len(one.per_sample)), read]


def _maps(result: Results, tables: dict[str, ScoreTable]) -> str:
    most = most_share(tables)
    shown = []
    for name, one in tables.items():
        said = "" if one is result.table else f" Rank correlation {at_least(result.table.rank_correlation(one))}."
        shown.append(
            chart(
                charts.heat_map(one, most),
                f"Heat map of visual scores of {result.key} over the data set {name}.{said}",
                f"{name}: share of the visual score of every head, all data sets on one scale.{said}",
            )
        )
    return pair(*shown)


def _is_drawn(material: Material, name: str) -> bool:
    """Whether a data set's pages are drawn by this project."""
    return name in material.params.datasets and material.params.datasets[name].source == "synthetic"


def _rates(result: Results, name: str, rates: list[Rates], drawn: bool) -> str:
    listed = [
        [
            words(row.covariate, row.bin),
            f"{row.top_heads:.1%}",
            f"{row.ci_low:.1%} to {row.ci_high:.1%}" if row.samples > 1 else "-",
            f"{row.all_heads:.1%}",
            str(row.samples),
            str(row.tokens),
        ]
        for row in rates
    ]
    span = [row.top_heads for row in rates]
    said = f"Hit rate of the best heads by size, script and kind of the text: {min(span):.0%} to {max(span):.0%}"
    caption = f"{result.label}, {name}. {RATES_NOTE.format(DRAWN if drawn else '')}"
    return details(f"{result.name}, {name}. {said}", table(RATES, listed, caption))
