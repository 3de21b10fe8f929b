"""The chase stage: turns the aligned answers of a model into its score table, shard by shard."""

from __future__ import annotations

import math
import shutil
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemm.chase.covariates import write_covariates
from sparsemm.chase.early_stop import shards_needed
from sparsemm.chase.scoring import score_table
from sparsemm.chase.sharded import ShardedChase
from sparsemm.chase.shards import Shard, join_shards
from sparsemm.files import result_path, write_csv, write_json
from sparsemm.params import Params
from sparsemm.progress import progress
from sparsemm.scores import SHARES, ScoreTable


def metrics(table: ScoreTable, counts: NDArray[np.int64]) -> dict[str, Any]:
    """Returns the stage's metrics as plain JSON: counts, hit rates, concentration and reliability.

    Args:
        table: the score table.
        counts: (N, 3) int64, see `Shard`.
    """
    aligned, predicted, scored = (int(v) for v in counts.sum(axis=0))
    rates = table.hits / scored
    layer, head, _ = table.top_heads(1)[0]
    half = table.split_half()
    return {
        "samples": len(counts),
        "tokens_aligned": aligned,
        "tokens_scored": scored,
        "share_own_argmax": round(predicted / aligned, 6),
        "hit_rate_mean": round(float(rates.mean()), 6),
        "hit_rate_max": round(float(rates.max()), 6),
        "top_head": f"{layer}-{head}",
        "top_head_hit_rate": round(float(rates[layer, head]), 6),
        "top_share": {f"{fraction:.0%}": round(table.top_share(fraction), 6) for fraction in SHARES},
        "split_half": None if math.isnan(half) else round(half, 6),
    }


def write_curve(path: Path, table: ScoreTable) -> None:
    """Writes a CSV for plots: heads by falling score, with rank (from 1), share and cumulative share."""
    rows, total = [], 0.0
    for rank, (layer, head, share) in enumerate(table.top_heads(table.scores.size), start=1):
        total += share
        shares = {"share": f"{share:.8f}", "cumulative": f"{min(total, 1.0):.8f}"}
        rows.append({"rank": rank, **shares, "layer": layer, "head": head})
    write_csv(path, ("rank", "share", "cumulative", "layer", "head"), rows)


def run(params: Params, key: str, root: Path = Path("."), dataset: str | None = None) -> None:
    """Scores the heads of one model; writes <key>.safetensors, .json (metrics), .csv (curve) and .covariates.csv.

    If it was stopped, the next run resumes after the last complete shard. With `chase.stop`, the table holds only as
    many shards as are needed, however many were computed.

    Args:
        params: the parsed params.yaml.
        key: name of the model there.
        root: root folder of the project.
        dataset: a data set of `robustness`, whose files are in artifacts/scores/also/<key>; None for `chase.dataset`,
            whose files are in artifacts/scores.

    Raises:
        AlignError: if the align stage's file is missing or does not fit the data set.
        ParamsError: if the model or the data set is unknown.
        ScoreTableError: if no token could be scored, or no head ever hit.
    """
    chase = ShardedChase(params, key, root, dataset)
    numbers = progress(range(chase.count), chase.count, f"chase {key} (shards of {chase.settings.shard_size})")
    shards: list[Shard] = []

    def compute() -> Iterator[Shard]:
        for number in numbers:
            shards.append(chase.shard(number))
            yield shards[-1]

    if chase.settings.stop is None:
        deque(compute(), maxlen=0)
    else:
        shards_needed(compute(), chase.settings.stop)
    whole = join_shards(shards)
    available = {"samples_available": len(chase.records)}
    table = score_table(whole, chase.header | available, where=f"model {key}")

    def path(suffix: str) -> Path:
        return result_path(root, "scores", key, suffix, dataset)

    table.save(path(".safetensors"))
    write_json(path(".json"), metrics(table, whole.counts) | available)
    write_curve(path(".csv"), table)
    write_covariates(path(".covariates.csv"), whole, chase.records, table.scores)
    shutil.rmtree(chase.work, ignore_errors=True)
