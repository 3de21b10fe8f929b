"""Does a head look at small words as well as at large ones? Hit rates of the best heads by what is on the page."""

from __future__ import annotations

import csv
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
from sparsemm.files import atomic_path
from sparsemm.scores import Scores, top_set

FRACTION = 0.05  # of the heads that are the best
RESAMPLES = 1000  # of the samples, behind the interval


class Rates(NamedTuple):
    """Share of the answer tokens of a bin at whose box heads look; mean over heads.

    Attributes:
        covariate, bin: what kind of text it is.
        samples, tokens: that have any, answer tokens of it.
        top_heads: of the best 5 % of the heads.
        ci_low, ci_high: 95 % bootstrap interval of it, over samples; of one sample it has no width.
        all_heads: of all heads.
    """

    covariate: str
    bin: str
    samples: int
    tokens: int
    top_heads: float
    ci_low: float
    ci_high: float
    all_heads: float


def script(text: str) -> str:
    """Unicode script of most letters, as the first word of their names: latin, cjk, arabic, ...; else digits or other.

    Of two scripts with as many letters the first in the alphabet counts.
    """
    letters = Counter(unicodedata.name(c, "other").split()[0].lower() for c in text if c.isalpha())
    if letters:
        return min(letters, key=lambda name: (-letters[name], name))
    return "digits" if any(c.isdigit() for c in text) else "other"


def described(entry: Entry, visual_tokens: int) -> dict[str, str]:
    """Bins of an entry: what it is, its script, and its size in pixels and in visual tokens, by powers of two."""
    x0, y0, x1, y1 = entry.box
    return {
        "kind": entry.kind,
        "script": script(entry.text),
        "box_height_px": _doubling(y1 - y0),  # of a line of text: stands for its font size
        "box_area_px": _doubling((x1 - x0) * (y1 - y0)),
        "visual_tokens": _doubling(visual_tokens),
    }


def _doubling(value: float) -> str:
    low = 2 ** math.floor(math.log2(max(value, 1.0)))
    return f"{low}-{2 * low}"


def covariates(shard: Shard, records: Sequence[Record], scores: Scores) -> list[Rates]:
    """Hit rates by covariate and bin.

    The best heads are chosen on the same samples: rates compare bins with each other, they are no forecast.

    Args:
        shard: all samples, in the order of the records.
        scores: (L, Hq) float64 of these samples.
    """
    bits = np.unpackbits(shard.looked, axis=1, count=scores.size)
    best = bits[:, sorted(top_set(scores, FRACTION))].mean(axis=1)
    every = bits.mean(axis=1)
    chosen: dict[tuple[str, str], list[int]] = defaultdict(list)
    for t, (sample, entry, size) in enumerate(shard.tokens.tolist()):
        for name, value in described(records[sample].entries[entry], size).items():
            chosen[name, value].append(t)

    def order(key: tuple[str, str]) -> tuple[str, int, str]:
        low = key[1].partition("-")[0]
        return key[0], int(low) if low.isdigit() else 0, key[1]

    rows = []
    for key in sorted(chosen, key=order):
        at = chosen[key]
        samples, of = np.unique(shard.tokens[at, 0], return_inverse=True)
        ends = _interval(np.bincount(of, best[at]), np.bincount(of))
        rows.append(Rates(*key, len(samples), len(at), float(best[at].mean()), *ends, float(every[at].mean())))
    return rows


def _interval(looked: NDArray[Any], tokens: NDArray[Any]) -> tuple[float, float]:
    """95 % percentile interval of sum(looked) / sum(tokens), both (N,), over resampled samples.

    Tokens of one page are no independent draws: whole samples are drawn anew.
    """
    n = len(tokens)
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, n, n) for _ in range(RESAMPLES)]
    low, high = np.quantile([looked[one].sum() / tokens[one].sum() for one in drawn], [0.025, 0.975])
    return float(low), float(high)


def write_covariates(path: Path, shard: Shard, records: Sequence[Record], scores: Scores) -> None:
    """CSV of `covariates`."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(Rates._fields)
        for row in covariates(shard, records, scores):
            writer.writerow([f"{value:.6f}" if isinstance(value, float) else value for value in row])
