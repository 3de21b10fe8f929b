"""Several processes give the bytes of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsemm.chase import workers
from sparsemm.cli import main
from sparsemm.errors import ParamsError, PipelineError
from sparsemm.params import Params
from sparsemm.params.stages import StopParams
from tests.chase.test_stage import NAME, inputs, outputs, params, saved

STOP = StopParams(min_samples=4, top_overlap=0.0, rank_correlation=-1.0, patience=1)


@pytest.fixture
def checkpoint(tiny: Any, tmp_path: Path) -> Path:
    return saved(tiny, NAME, tmp_path / "checkpoint")


def shards(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "artifacts" / "work").rglob("*.safetensors"))


def test_processes_give_the_bytes_of_one_run(tiny: Any, checkpoint: Path, tmp_path: Path) -> None:
    given = params(checkpoint)
    alone, together = tmp_path / "alone", tmp_path / "together"
    for root in (alone, together):
        inputs(root, tiny(NAME)[1])
        (root / "params.yaml").write_text(yaml.safe_dump(given.model_dump(mode="json")))
        arguments = ["--params", str(root / "params.yaml"), "--root", str(root), "chase", "m", "--processes"]
        assert main([*arguments, "1" if root is alone else "2"]) == 0
    assert outputs(alone) == outputs(together)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_parts_in_any_order_stop_where_one_run_does(
    tiny: Any, checkpoint: Path, tmp_path: Path, order: tuple[int, int]
) -> None:
    from sparsemm.chase.stage import run

    given = params(checkpoint, stop=STOP, shard_size=2)  # four shards, two of which are enough
    alone, parts = tmp_path / "alone", tmp_path / "parts"
    for root in (alone, parts):
        inputs(root, tiny(NAME)[1])
    for part in order:
        workers.compute_part(given, "m", (part, 2), parts)
    # Whoever comes second knows that shards 0 and 1 are enough.
    assert shards(parts) == [f"000{n}.safetensors" for n in ((0, 1, 2) if order == (0, 1) else (0, 1, 3))]
    for root in (alone, parts):
        run(given, "m", root)
    assert outputs(alone) == outputs(parts)


def test_a_process_that_fails_is_an_error(capfd: Any) -> None:
    with pytest.raises(PipelineError, match="chase process [01]: ended with 2"):
        workers.run_processes(["chase"], 2)
    assert "the following arguments are required" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("visible", "seen"),
    [("1, GPU-8f2,MIG-GPU-41a/7/0", ["1", "GPU-8f2", "MIG-GPU-41a/7/0", "1"]), ("-1", ["-1"] * 4)],
)
def test_each_process_sees_one_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, seen: list[str]
) -> None:
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\nfor part; do :; done\necho "$CUDA_VISIBLE_DEVICES" > "${0%/*}/${part%/*}"\n')
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    workers.run_processes(["chase", "m"], 4)
    assert [(tmp_path / str(number)).read_text().strip() for number in range(4)] == seen


@pytest.mark.parametrize("text", ["", "2", "2/2", "-1/2", "a/b", "1/2/3"])
def test_parts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ParamsError, match="no part of the shards"):
        workers.parse_part(text)


def test_one_process_for_each_gpu(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = params(checkpoint, shard_size=32)  # four shards
    assert workers.parse_part("3/4") == (3, 4)
    for visible, count in [("", 1), ("0", 1), ("0,1", 2), ("0,1,2,3,4,5", 4)]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert workers.process_count(given, "m") == count
    spread = given.models["m"].model_copy(update={"device_map": "auto"})
    assert workers.process_count(Params.model_copy(given, update={"models": {"m": spread}}), "m") == 1
