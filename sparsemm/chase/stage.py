"""The chase stage: aligned answers of one model -> its score table; resumable per shard."""

from __future__ import annotations

import csv
import math
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemm.chase.covariates import write_covariates
from sparsemm.chase.settle import settled_after
from sparsemm.chase.shards import Shard, joined
from sparsemm.chase.work import Work
from sparsemm.errors import ScoreTableError
from sparsemm.files import atomic_path, result_path, write_json
from sparsemm.params import Params
from sparsemm.progress import progress
from sparsemm.scores import SHARES, ScoreTable


def metrics(table: ScoreTable, counts: NDArray[np.int64]) -> dict[str, Any]:
    """What the stage reports, plain JSON: counts, hit rates, concentration and reliability.

    Args:
        counts: (N, 3) int64, see `Shard`.
    """
    aligned, said, scored = (int(v) for v in counts.sum(axis=0))
    rates = table.hits / scored
    layer, head, _ = table.top_heads(1)[0]
    half = table.split_half()
    return {
        "samples": len(counts),
        "tokens_aligned": aligned,
        "tokens_scored": scored,
        "share_own_argmax": round(said / aligned, 6),
        "hit_rate_mean": round(float(rates.mean()), 6),
        "hit_rate_max": round(float(rates.max()), 6),
        "top_head": f"{layer}-{head}",
        "top_head_hit_rate": round(float(rates[layer, head]), 6),
        "top_share": {f"{fraction:.0%}": round(table.top_share(fraction), 6) for fraction in SHARES},
        "split_half": None if math.isnan(half) else round(half, 6),
    }


def write_curve(path: Path, table: ScoreTable) -> None:
    """CSV for plots: heads by falling score, with rank (from 1), share and cumulative share."""
    heads = table.top_heads(table.scores.size)
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["rank", "share", "cumulative", "layer", "head"])
        total = 0.0
        for rank, (layer, head, share) in enumerate(heads, start=1):
            total += share
            writer.writerow([rank, f"{share:.8f}", f"{min(total, 1.0):.8f}", layer, head])


def run(params: Params, key: str, root: Path = Path("."), dataset: str | None = None) -> None:
    """Score the heads of one model, and write <key>.safetensors, .json (metrics), .csv (curve), .covariates.csv.

    Shards of `chase.shard_size` samples are kept until the end: a stopped run goes on where it was. With `chase.stop`
    only as many shards count as settle the scores, whoever computed them.

    Args:
        dataset: of `robustness`, whose files are in artifacts/scores/also/<key>; None for `chase.dataset`, whose
            files are in artifacts/scores.

    Raises:
        AlignError: if the align stage's file is missing or does not fit the data set.
        ParamsError: if the model or the data set is unknown.
        ScoreTableError: if no token could be scored, or no head ever hit.
    """
    work = Work(params, key, root, dataset)
    text = f"chase {key} (shards of {work.params.shard_size})"
    numbers = progress(range(work.count), work.count, text)
    shards: list[Shard] = []

    def computed() -> Iterator[Shard]:
        for number in numbers:
            shards.append(work.shard(number))
            yield shards[-1]

    stop = work.params.stop
    if stop is None:
        deque(computed(), maxlen=0)
    else:
        settled_after(computed(), stop)
    _write(key, shards, work, lambda suffix: result_path(root, "scores", key, suffix, dataset))
    shutil.rmtree(work.work, ignore_errors=True)


def _write(key: str, shards: list[Shard], work: Work, path: Callable[[str], Path]) -> None:
    scored = sum(len(shard.tokens) for shard in shards)
    if scored == 0:
        raise ScoreTableError(
            "no answer token could be scored",
            where=f"model {key}",
            hint="see artifacts/align: does the model read these pages with this prompt?",
        )
    whole = joined(shards)
    counted = {"samples": len(whole.counts), "samples_available": len(work.records), "tokens": scored}
    table = ScoreTable.from_samples(whole.weighted, whole.hits.sum(axis=0), {**work.header, **counted})
    table.normalised()  # refuses a table without a single hit before anything is written
    table.save(path(".safetensors"))
    write_json(path(".json"), metrics(table, whole.counts) | {"samples_available": len(work.records)})
    write_curve(path(".csv"), table)
    write_covariates(path(".covariates.csv"), whole, work.records, table.scores)
