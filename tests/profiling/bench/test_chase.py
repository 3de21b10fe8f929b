"""bench chase: one JSON object, and a loop that sees what the chase sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsemm.cli import main
from sparsemm.profiling import held_bytes, shapes
from sparsemm.profiling.bench import arithmetic, chase, chase_samples
from sparsemm.profiling.shapes import Shape

ROOT = Path(__file__).parents[3]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (chase, chase_samples):
        monkeypatch.setattr(module, "SHAPES", {"small": Shape(2, 32, 32, 4, 2, 50, 8)})
    monkeypatch.setattr(shapes, "SHAPES", chase_samples.SHAPES)
    for sizes in ("SIDE", "COMPARED"):
        monkeypatch.setattr(arithmetic, sizes, {"cpu": 64})
    for name, value in {"PAGES": 2, "BATCH": 2}.items():
        monkeypatch.setattr(chase_samples, name, value)


RANDOM = ["--shape", "small", "--prompts", "2", "--prompt", "40", "--answer", "3"]


@pytest.mark.parametrize("which", [RANDOM, ["--checkpoint", str(ROOT / chase.CHECKPOINT)]])
def test_one_json_object_with_named_ratios(small: None, capsys: Any, which: list[str]) -> None:
    assert main(["bench", "chase", *which, "--json", "--repeats", "2", "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["bench"] == "chase" and printed["versions"]["torch"] == torch.__version__
    assert [row["variant"] for row in printed["rows"]] == ["forward", "chase", "loop"]
    for row in printed["rows"]:
        low, median, high = row["times"][row["variant"]]["seconds"]
        assert 0 < low <= median <= high and row["peak_bytes"] > 0
        assert row["samples_per_second"] == pytest.approx(2 / median, rel=1e-2)
    assert {"chase_over_forward", "loop_over_chase", "loop_over_forward"} <= set(printed["ratios"])
    bound = printed["rows"][0]["flops"] / printed["rows"][0]["matmul_flops_per_second"]
    loop = printed["rows"][2]["times"]["loop"]["seconds"][1]
    assert printed["ratios"]["loop_over_arithmetic"] == pytest.approx(loop / bound, rel=1e-2)
    assert printed["samples"] == 2 and printed["answer_tokens"] >= 6
    share = printed["rows"][0].get("decoder_share")
    assert share is None if which == RANDOM else 0.1 < share < 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_runs_in_the_dtype_that_this_device_multiplies_fastest(
    small: None, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(arithmetic, "matmul_rate", lambda one, *rest: 2.0 if dtype in str(one) else 1.0)
    sizes = chase_samples.Sizes(prompts=2, prompt=40, answer=3)
    assert chase.run("small", device="cpu", repeats=2, sizes=sizes)["dtype"] == dtype


def test_the_loop_scores_what_the_chase_scores(small: None) -> None:
    given = chase_samples.of_checkpoint(ROOT / chase.CHECKPOINT, "float32", torch.device("cpu"))
    with torch.inference_mode():
        fast, slow = chase.chase(given), chase.loop(given)
    assert fast.sum() > 0
    torch.testing.assert_close(torch.as_tensor(slow), torch.as_tensor(fast), rtol=1e-9, atol=1e-12)


def test_what_is_unknown_is_refused(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "COMPARED", {"cpu": 64})
    shape = ["--shape", "small"]
    wrong = {
        "gpt-2": ["--shape", "gpt-2"],
        "int8": ["--dtype", "int8"],
        "no spread": ["--repeats", "1"],
        "--prompt 7 is too small": [*shape, "--prompt", "7"],
        "--prompts 0": [*shape, "--prompts", "0"],
        "--answer -1": [*shape, "--answer", "-1"],
        "memory are available": [*shape, "--prompt", str(10**9)],
        "have their own sizes": ["--prompt", "40"],
    }
    for words, given in wrong.items():
        assert main(["bench", "chase", *given, "--device", "cpu"]) == 1
        assert words in capsys.readouterr().err
    assert main(["bench", "decode", "--prompt", "40"]) == 1
    assert "no --prompt" in capsys.readouterr().err


def test_the_chase_of_a_long_prompt_takes_less_than_its_keys_and_values_beyond_a_forward(
    small: None, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chase, "free_bytes", lambda device: 2**30)  # as if there were little: weights have no room
    asked = ["--shape", "small", "--prompts", "1", "--prompt", "4096", "--answer", "512", "--repeats", "2"]
    asked += ["--dtype", "float32"]
    assert main(["bench", "chase", *asked, "--device", "cpu", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["kv_bytes"] == 2 * 2 * 2 * 8 * (4096 + 512) * 4  # K and V, layers, KV heads, head_dim, fp32
    assert printed["ratios"]["chase_extra_over_kv"] < 1
    assert "the weights of 4096 tokens need" in printed["rows"][-1]["left_out"]
    assert "loop_over_chase" not in printed["ratios"]


def test_peak_is_what_is_held_at_one_time() -> None:
    def function() -> None:
        first = torch.zeros(1000, dtype=torch.uint8)
        second = torch.zeros(2000, dtype=torch.uint8)
        del first
        third = torch.zeros(500, dtype=torch.uint8)
        del second, third

    assert 3000 <= held_bytes.peak_bytes(function, torch.device("cpu")) < 3500
