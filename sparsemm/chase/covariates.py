"""Breaks the hit rates of the best heads down by what is on the page, such as the size of the words."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsemm.chase.shards import Shard
from sparsemm.datasets.records import Entry, Record
from sparsemm.files import write_csv
from sparsemm.scores import Scores, top_set
from sparsemm.statistics import interval

FRACTION = 0.05  # of the heads count as the best
RESAMPLES = 1000  # bootstrap resamples of the samples


class Rates(NamedTuple):
    """Hit rates of the answer tokens in one bin, mean over heads."""

    covariate: str  # the property of the text
    bin: str  # its value
    samples: int  # number of samples with such text
    tokens: int  # number of their answer tokens
    top_heads: float  # rate of the best 5 % of the heads
    ci_low: float  # 95 % bootstrap interval of `top_heads` over samples, which has no width for a single sample
    ci_high: float
    all_heads: float  # rate of all heads


def script(text: str) -> str:
    """Returns the Unicode script of most letters, as in their names (latin, cjk, arabic, ...), or digits, or other.

    Of two scripts with as many letters, the first in the alphabet is returned.
    """
    letters = Counter(unicodedata.name(c, "other").split()[0].lower() for c in text if c.isalpha())
    if letters:
        return min(letters, key=lambda name: (-letters[name], name))
    return "digits" if any(c.isdigit() for c in text) else "other"


def bins_of(entry: Entry, visual_tokens: int) -> dict[str, str]:
    """Returns the bin of an entry by covariate: kind, script, and sizes by powers of two."""
    x0, y0, x1, y1 = entry.box
    return {
        "kind": entry.kind,
        "script": script(entry.text),
        "box_height_px": _power_of_two(y1 - y0),  # of a line of text, in place of its font size
        "box_area_px": _power_of_two((x1 - x0) * (y1 - y0)),
        "visual_tokens": _power_of_two(visual_tokens),
    }


def _power_of_two(value: float) -> str:
    low = 2 ** math.floor(math.log2(max(value, 1.0)))
    return f"{low}-{2 * low}"


def covariates(shard: Shard, records: Sequence[Record], scores: Scores) -> list[Rates]:
    """Returns hit rates by covariate and bin.

    The best heads are chosen on the same samples, so the rates compare bins with each other and forecast nothing.

    Args:
        shard: all samples, in the order of the records.
        records: the records.
        scores: (L, Hq) float64 of these samples.
    """
    bits = np.unpackbits(shard.hit_bits, axis=1, count=scores.size)
    top_rates = bits[:, sorted(top_set(scores, FRACTION))].mean(axis=1)
    all_rates = bits.mean(axis=1)
    tokens_by_bin: dict[tuple[str, str], list[int]] = defaultdict(list)
    for t, (sample, entry, size) in enumerate(shard.tokens.tolist()):
        for key in bins_of(records[sample].entries[entry], size).items():
            tokens_by_bin[key].append(t)

    def order(key: tuple[str, str]) -> tuple[str, int, str]:
        low = key[1].partition("-")[0]
        return key[0], int(low) if low.isdigit() else 0, key[1]

    rows = []
    for key in sorted(tokens_by_bin, key=order):
        tokens = tokens_by_bin[key]
        top = top_rates[tokens]
        samples, sample_of = np.unique(shard.tokens[tokens, 0], return_inverse=True)
        interval = _interval(np.bincount(sample_of, top), np.bincount(sample_of))
        rows.append(
            Rates(*key, len(samples), len(tokens), float(top.mean()), *interval, float(all_rates[tokens].mean()))
        )
    return rows


def _interval(hits: NDArray[Any], tokens: NDArray[Any]) -> tuple[float, float]:
    """Returns the 95 % percentile interval of sum(hits) / sum(tokens), both (N,), over resampled samples.

    Whole samples are resampled because the tokens of one page are not independent.
    """
    n = len(tokens)
    rng = np.random.default_rng(0)
    resamples = [rng.integers(0, n, n) for _ in range(RESAMPLES)]
    return interval(np.array([hits[chosen].sum() / tokens[chosen].sum() for chosen in resamples]))


def write_covariates(path: Path, shard: Shard, records: Sequence[Record], scores: Scores) -> None:
    """Writes the rows of `covariates` as CSV."""
    rows = (row._asdict() for row in covariates(shard, records, scores))
    rounded = ({name: f"{n:.6f}" if isinstance(n, float) else n for name, n in row.items()} for row in rows)
    write_csv(path, Rates._fields, rounded)
