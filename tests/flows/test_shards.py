"""The shards of a chase on a real Dask cluster of two processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sparsemm.chase.stage import run
from tests.chase.test_stage import NAME, inputs, outputs, params, saved

pytest.importorskip("prefect_dask")
ROOT = Path(__file__).parents[2]


def test_the_stage_adds_up_what_dask_workers_scored(tiny, prefect_api, tmp_path):
    here = params(saved(tiny, NAME, tmp_path / "checkpoint"))
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    for root in (alone, spread):
        inputs(root, tiny(NAME)[1])
        (root / "params.yaml").write_text(yaml.safe_dump(here.model_dump(mode="json")))
    command = [sys.executable, "-m", "flows.shards", "m", "--root", str(spread), "--workers", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "7 samples scored" in done.stdout
    shards = sorted((spread / "artifacts" / "work" / "chase" / "m").glob("*/*.safetensors"))
    assert len(shards) == 3
    before = [path.stat().st_mtime_ns for path in shards]
    from sparsemm.chase.sharded import ShardedChase

    work = ShardedChase(here, "m", spread)
    for number in range(work.count):
        work.shard(number)
    assert [path.stat().st_mtime_ns for path in shards] == before  # found, not computed again
    for root in (alone, spread):
        run(here, "m", root)
    assert outputs(alone) == outputs(spread)
