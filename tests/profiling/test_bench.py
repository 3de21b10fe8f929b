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
from sparsemm.profiling.baselines import CopyingAppend, StaticAppend
from sparsemm.profiling.bench.caches import caches
from sparsemm.profiling.bench.setting import Setting
from sparsemm.profiling.shapes import Shape, random_model

OURS = ("sparsemm", "copying")
RATIOS = {
    "append": {"append_32k_over_1k", "copy_append_over_append_32k", "static_append_over_append_32k"},
    "compact": {"twin_over_compact_8k", "gather_over_compact_32k"},
    "observe": {"twin_over_observe_8k"},
    "attention": {"sdpa_over_causal_attention_padded", "sdpa_over_causal_attention_8k"},
    "decode": {"decode_bandwidth_share", "full_over_ragged_decode_32k_b256", "full_over_ragged_decode_long"},
    "skew": {"int8_one_peak_over_rows", "hold_budget_one_over_even", "turn_even_peak_over_rows"},
    "step": {"compression_share_of_prefill_8k", "static_over_sparsemm_step_8k", "copying_over_sparsemm_step_8k"},
    "graph": {"static_graph_over_graph_step_32k_b1", "full_graph_over_graph_step_32k_b16"},
    "memory": {"slack_share", "full_over_kept_bytes", "dynamic_over_sparsemm_peak"},
    "backends": {"ours_fastest_share"},
    "agreement": {"worst_observe", "int8_snapkv_tiny-qwen2-vl"},
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
    monkeypatch.setattr(bench.agreement, "ROUNDS", 1)
    monkeypatch.setattr(bench.agreement, "PAGES", 1)
    monkeypatch.setattr(bench.agreement, "NEW_TOKENS", 2)


@pytest.mark.parametrize("name", list(bench.BENCHES))
def test_one_json_object_with_named_ratios(small: None, capsys: Any, name: str) -> None:
    repeats = [] if name in bench.UNUSED else ["--repeats", "2"]
    assert main(["bench", name, "--json", *repeats, "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    stated = [None, None] if name == "agreement" else ["mistral-7b", "float32"]
    assert [printed["shape"], printed["dtype"]] == (["small", "float32"] if name in bench.WHOLE_MODEL else stated)
    assert printed["bench"] == name and printed["versions"]["torch"] == torch.__version__
    assert RATIOS[name] <= set(printed["ratios"])
    assert printed["rows"] and all(isinstance(value, float | int) for value in printed["ratios"].values())
    for row in printed["rows"]:
        for timed in row.get("times", {}).values():
            low, median, high = timed["seconds"]
            assert 0 < low <= median <= high


def test_memory_is_counted_exactly(small: None) -> None:
    (*_, row) = bench.run("memory", device="cpu")["rows"]
    assert row["slots"] == 8 * 2 * 2  # the budget, layers, KV heads
    assert row["kept_bytes"] == row["slots"] * 2 * 8 * 4
    assert row["length"] == 40 and row["dynamic_bytes"] == 40 * 2 * 2 * 2 * 8 * 4


def test_without_json_it_prints_the_ratios(small: None, capsys: Any) -> None:
    assert main(["bench", "memory", "--device", "cpu"]) == 0
    assert "slack_share  " in capsys.readouterr().out


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
        ["decode", "--shape", "gpt-2"],
        ["decode", "--dtype", "int8"],
        ["decode", "--repeats", "1"],
        ["decode", "--keep"],
        ["agreement", "--shape", "small"],
        ["agreement", "--dtype", "float16"],
        ["agreement", "--repeats", "3"],
        ["memory", "--repeats", "3"],
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


@pytest.mark.parametrize("name", bench.WHOLE_MODEL)
def test_a_model_without_room_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: Any, name: str) -> None:
    monkeypatch.setattr(shapes, "free_bytes", lambda device: 20 << 30)
    assert main(["bench", name, "--shape", "vicuna-7b", "--device", "cpu"]) == 1
    assert "shape vicuna-7b: " in (said := capsys.readouterr().err) and "20.0 GiB of cpu memory" in said


def test_the_rows_of_a_graph_bench_count_by_their_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = []
    monkeypatch.setattr(bench, "check_room", lambda *given: wanted.append(given))
    monkeypatch.setitem(bench.BENCHES, "graph", lambda setting: ([], {}))
    monkeypatch.setattr(clock, "COPIED", {"cpu": 0})
    bench.run("graph", "mistral-7b", "bfloat16", "cpu")
    one = 32768 * 2 * 32 * 8 * 128 * 2
    assert wanted == [("mistral-7b", 32768, 1, torch.bfloat16, torch.device("cpu"), 7 * one)]


def test_the_baselines_append_what_they_say() -> None:
    keys, values, lengths = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([2, 3])
    new = torch.randn(2, 4)
    grown, _ = CopyingAppend(keys, values, lengths)(new, new)
    assert torch.equal(grown, torch.cat([keys[:2], new[:1], keys[2:], new[1:]]))
    full = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)
    StaticAppend(*full)(new.view(1, 2, 1, 4), new.view(1, 2, 1, 4))
    assert torch.equal(full[0][0, :, 2], new) and torch.equal(full[1][0, :, 2], new)


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
