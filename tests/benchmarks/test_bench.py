"""Every bench of the repository runs, prints one JSON object, and its figures have stable names."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import agreement
from benchmarks.append import StaticAppend
from sparsemm.profiling import bench, clock, shapes
from sparsemm.profiling.bench.baselines import CopyingAppend
from tests.profiling.bench.test_benches import small  # noqa: F401

RATIOS = {
    "append": {"append_32k_over_1k", "copy_append_over_append_32k", "static_append_over_append_32k"},
    "compact": {"twin_over_compact_8k", "gather_over_compact_32k"},
    "observe": {"twin_over_observe_8k"},
    "attention": {"sdpa_over_causal_attention_padded", "sdpa_over_causal_attention_8k"},
    "skew": {"int8_one_peak_over_rows", "hold_budget_one_over_even", "turn_even_peak_over_rows"},
    "graph": {"static_graph_over_graph_step_32k_b1", "full_graph_over_graph_step_32k_b16"},
    "memory": {"slack_share", "full_over_kept_bytes", "dynamic_over_sparsemm_peak"},
    "agreement": {"worst_observe", "int8_snapkv_tiny-qwen2-vl"},
}


@pytest.fixture(autouse=True)
def few(small: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    for name, value in {"ROUNDS": 1, "PAGES": 1, "NEW_TOKENS": 2}.items():
        monkeypatch.setattr(agreement, name, value)


@pytest.mark.parametrize("name", list(command.BENCHES))
def test_one_json_object_with_named_ratios(capsys: Any, name: str) -> None:
    one = command.BENCHES[name]
    repeats = [] if "repeats" in one.unused else ["--repeats", "2"]
    assert command.main([name, "--json", *repeats, "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    shape, dtype = ("small" if one.whole_model else "mistral-7b"), "float32"
    assert [printed["shape"], printed["dtype"]] == ([None, None] if "shape" in one.unused else [shape, dtype])
    assert printed["bench"] == name and printed["versions"]["torch"] == torch.__version__
    assert RATIOS[name] <= set(printed["ratios"])
    assert printed["rows"] and all(isinstance(value, float | int) for value in printed["ratios"].values())
    for row in printed["rows"]:
        for timed in row.get("times", {}).values():
            low, median, high = timed["seconds"]
            assert 0 < low <= median <= high


def test_memory_is_counted_exactly() -> None:
    (*_, row) = bench.run("memory", device="cpu", benches=command.BENCHES)["rows"]
    assert row["slots"] == 8 * 2 * 2  # the budget, layers, KV heads
    assert row["kept_bytes"] == row["slots"] * 2 * 8 * 4
    assert row["length"] == 40 and row["dynamic_bytes"] == 40 * 2 * 2 * 2 * 8 * 4


@pytest.mark.parametrize(
    "options",
    [
        ["decode"],
        ["agreement", "--shape", "small"],
        ["agreement", "--dtype", "float16"],
        ["agreement", "--repeats", "3"],
        ["memory", "--repeats", "3"],
    ],
)
def test_what_is_unknown_is_refused(capsys: Any, options: list[str]) -> None:
    assert command.main([*options, "--device", "cpu"]) == 1
    assert "benchmarks: " in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", list(command.BENCHES))
def test_cuda_without_a_device_is_refused(capsys: Any, name: str) -> None:
    assert command.main([name, "--device", "cuda"]) == 1
    assert "no CUDA device (--device cpu" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["graph", "memory"])
def test_a_model_without_room_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: Any, name: str) -> None:
    monkeypatch.setattr(shapes, "free_bytes", lambda device: 0)
    assert command.main([name, "--device", "cpu"]) == 1
    assert "shape small: " in (message := capsys.readouterr().err) and "0.0 GiB of cpu memory" in message


def test_the_rows_of_a_graph_bench_count_by_their_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = []
    monkeypatch.setattr(bench, "check_room", lambda *given: wanted.append(given))
    benches = {"graph": replace(command.BENCHES["graph"], run=lambda setting: ([], {}))}
    monkeypatch.setattr(bench, "SHAPES", shapes.SHAPES)
    monkeypatch.setattr(bench, "LENGTHS", (1024, 8192, 32768))
    monkeypatch.setattr(clock, "COPIED", {"cpu": 0})
    bench.run("graph", "mistral-7b", "bfloat16", "cpu", benches=benches)
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
