"""Every bench runs, prints one JSON object, and its figures have stable names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsemm.cli import main
from sparsemm.ops import build, fastest
from sparsemm.profiling import bench, clock, shapes
from sparsemm.profiling.bench.caches import caches
from sparsemm.profiling.bench.setting import Setting
from sparsemm.profiling.shapes import Shape, random_model

OURS = ("sparsemm", "copying")
RATIOS = {
    "decode": {"decode_bandwidth_share", "full_over_ragged_decode_32k_b256", "full_over_ragged_decode_long"},
    "step": {"compression_share_of_prefill_8k", "static_over_sparsemm_step_8k", "copying_over_sparsemm_step_8k"},
    "backends": {"ours_fastest_share"},
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(2, 32, 32, 4, 2, 50, 8)
    monkeypatch.setattr(clock, "COPIED", dict.fromkeys(clock.COPIED, 1 << 16))
    monkeypatch.setattr(clock, "TURN", 1e-5)
    monkeypatch.setattr(bench, "SHAPES", {"mistral-7b": shape, "small": shape})
    monkeypatch.setattr(bench, "BUDGET", 8)
    monkeypatch.setattr(bench, "WINDOW", 4)
    monkeypatch.setattr(bench, "LENGTHS", (20, 40, 60))
    monkeypatch.setattr(bench.backends, "BUDGETS", (4, 20))


@pytest.mark.parametrize("name", list(bench.BENCHES))
def test_one_json_object_with_named_ratios(small: None, capsys: Any, name: str) -> None:
    assert main(["bench", name, "--json", "--repeats", "2", "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [printed["shape"], printed["dtype"]] == ["small" if name == "step" else "mistral-7b", "float32"]
    assert printed["bench"] == name and printed["versions"]["torch"] == torch.__version__
    assert RATIOS[name] <= set(printed["ratios"])
    assert printed["rows"] and all(isinstance(value, float | int) for value in printed["ratios"].values())
    for row in printed["rows"]:
        for timed in row.get("times", {}).values():
            low, median, high = timed["seconds"]
            assert 0 < low <= median <= high


def test_without_json_it_prints_the_ratios(small: None, capsys: Any) -> None:
    assert main(["bench", "decode", "--device", "cpu", "--repeats", "2"]) == 0
    assert "decode_bandwidth_share  " in capsys.readouterr().out


def test_the_fastest_backend_is_kept_and_a_second_shape_added(
    small: None, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench.backends, "fastest", lambda times, eligible: eligible[-1])
    monkeypatch.setattr(build, "library_folder", lambda: tmp_path)
    fastest.measured.cache_clear()
    assert main(["bench", "backends", "--device", "cpu", "--keep"]) == 0
    assert "batch 8, 20 rows a head  twin" in capsys.readouterr().out
    assert main(["bench", "backends", "--device", "cpu", "--keep", "--dtype", "bfloat16", "--json"]) == 0
    assert Path(json.loads(capsys.readouterr().out)["kept"]).parent == tmp_path
    kept = fastest.measured(torch.device("cpu"))
    assert [(one["dtype"], one["segments"], one["backend"]) for one in kept] == [
        (dtype, segments, "twin") for dtype in ("float32", "bfloat16") for segments in (2, 2, 16, 16)
    ]
    fastest.measured.cache_clear()
    fastest.backend.cache_clear()


def test_another_backend_has_to_be_faster_than_noise() -> None:
    times = {"ours": [1.00, 1.02, 9.0], "flash": [1.0, 1.0, 1.0], "twin": [3.0, 3.0, 3.0]}
    assert bench.backends.fastest(times, ["ours", "flash", "twin"]) == "ours"
    times["flash"] = [0.9, 0.9, 5.0]
    assert bench.backends.fastest(times, ["ours", "flash", "twin"]) == "flash"
    assert bench.backends.fastest(times, ["ours", "twin"]) == "ours"


@pytest.mark.parametrize(
    "given",
    [
        ["decod"],
        ["append"],
        ["decode", "--shape", "gpt-2"],
        ["decode", "--dtype", "int8"],
        ["decode", "--repeats", "1"],
        ["decode", "--keep"],
        ["decode", "--checkpoint", "x"],
        ["chase", "--shape", "small", "--checkpoint", "x"],
    ],
)
def test_what_is_unknown_is_refused(capsys: Any, given: list[str]) -> None:
    assert main(["bench", *given, "--device", "cpu"]) == 1
    assert "sparsemm: " in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", [*bench.BENCHES, "chase"])
def test_cuda_without_a_device_is_refused(small: None, capsys: Any, name: str) -> None:
    assert main(["bench", name, "--device", "cuda"]) == 1
    assert "no CUDA device (--device cpu" in capsys.readouterr().err


def test_a_model_without_room_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(shapes, "free_bytes", lambda device: 20 << 30)
    assert main(["bench", "step", "--shape", "vicuna-7b", "--device", "cpu"]) == 1
    assert "shape vicuna-7b: " in (said := capsys.readouterr().err) and "20.0 GiB of cpu memory" in said


def test_the_copying_cache_differs_in_its_append_only() -> None:
    shape = Shape(2, 32, 32, 4, 2, 50, 8)
    setting = Setting(shape, torch.float32, torch.device("cpu"), 2, (20, 40, 60), 8, 4)
    model = random_model(shape, torch.float32, torch.device("cpu"), 60)
    prompt, steps = torch.randint(50, (2, 40)), torch.randint(50, (4, 2, 1))
    logits = []
    for cache in (made := [make() for name, make in caches(model, setting, 40, 4).items() if name in OURS]):
        with torch.inference_mode():
            model(prompt, past_key_values=cache)
            logits.append(torch.stack([model(step, past_key_values=cache).logits for step in steps]))
    torch.testing.assert_close(*logits)
    own, copying = made
    assert torch.equal(own.kept_slots(), copying.kept_slots())
    assert copying.slab_bytes() == copying.kept_bytes() < own.slab_bytes()  # no slack: that is why it copies
