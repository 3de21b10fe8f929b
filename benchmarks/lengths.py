"""The profile stage's table at other lengths: `python -m benchmarks.lengths KEY` prints it as JSON, to 32K."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsemm.errors import SparseMMError
from sparsemm.params import Params, load_params
from sparsemm.profiling.clock import device_of, heading
from sparsemm.profiling.measurements import BASELINE
from sparsemm.profiling.stage import profile_model
from sparsemm.profiling.table import rows

LENGTHS = (2048, 4096, 8192, 16384, 32768)  # tokens; the paper's


def run(params: Params, key: str, lengths: Sequence[int] = LENGTHS, root: Path = Path(".")) -> dict[str, Any]:
    """{bench, model, device, load, date, versions, rows, ratios}; rows as in artifacts/profile/<key>.csv.

    `ratios` are over transformers' own full cache at the longest length: decode step, peak memory, bytes of the cache.

    Raises:
        ScoreTableError: if the score table is missing or of another model.
        DataError: if a length is too short for the image.
    """
    head = heading("lengths", device_of(None), model=key)
    profile = params.profile.model_copy(update={"lengths": tuple(lengths)})
    table = rows(profile_model(params.model_copy(update={"profile": profile}), key, root))
    longest = {row["method"]: row for row in table if row["prompt_length"] == max(lengths)}
    return head | {"rows": table, "ratios": _ratios(longest)}


def _ratios(longest: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    full = longest[BASELINE]
    return {
        method: {
            "decode": row["decode_ratio_to_full"],
            "peak_bytes": round(row["peak_bytes"] / full["peak_bytes"], 4),
            "cache_bytes": round(row["slab_bytes"] / full["slab_bytes"], 4),
        }
        for method, row in longest.items()
        if method != BASELINE
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the JSON object; 0, or 1 after saying what was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("key", help="model key; its score table is there")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of the prompts (2048 to 32768)")
    parser.add_argument("--root", type=Path, default=Path("."), help="the repository")
    chosen = parser.parse_args(arguments)
    try:
        params = load_params(chosen.root / "params.yaml")
        print(json.dumps(run(params, chosen.key, chosen.lengths, chosen.root), indent=2))
    except SparseMMError as error:
        print(f"sparsemm: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
