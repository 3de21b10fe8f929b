"""bench chase: one JSON object, and a loop that sees what the chase sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsemm.cli import main
from sparsemm.profiling import chase, peak, samples
from sparsemm.profiling.shapes import Shape

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (chase, samples):
        monkeypatch.setattr(module, "SHAPES", {"small": Shape(2, 32, 32, 4, 2, 50, 8)})
    for name, value in {"PAGES": 2, "BATCH": 2, "RANDOM": 2, "PROMPT": 40, "ANSWER": 3}.items():
        monkeypatch.setattr(samples, name, value)


@pytest.mark.parametrize("which", [["--shape", "small"], ["--checkpoint", str(ROOT / chase.CHECKPOINT)]])
def test_one_json_object_with_named_ratios(small: None, capsys: Any, which: list[str]) -> None:
    assert main(["bench", "chase", *which, "--json", "--repeats", "2", "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["bench"] == "chase" and printed["versions"]["torch"] == torch.__version__
    assert [row["variant"] for row in printed["rows"]] == ["forward", "chase", "loop"]
    for row in printed["rows"]:
        low, median, high = row["times"][row["variant"]]["seconds"]
        assert 0 < low <= median <= high and row["peak_bytes"] > 0
        assert row["samples_per_second"] == pytest.approx(2 / median, rel=1e-2)
    assert {"chase_over_forward", "loop_over_chase"} <= set(printed["ratios"])
    assert printed["samples"] == 2 and printed["answer_tokens"] >= 6


def test_the_loop_scores_what_the_chase_scores(small: None) -> None:
    given = samples.of_checkpoint(ROOT / chase.CHECKPOINT, "float32", torch.device("cpu"))
    with torch.inference_mode():
        fast, slow = chase.chase(given), chase.loop(given)
    assert fast.sum() > 0
    torch.testing.assert_close(torch.as_tensor(slow), torch.as_tensor(fast), rtol=1e-9, atol=1e-12)


def test_what_is_unknown_is_refused(capsys: Any) -> None:
    for given in (["--shape", "gpt-2"], ["--dtype", "int8"], ["--repeats", "1"]):
        assert main(["bench", "chase", *given, "--device", "cpu"]) == 1
        assert "sparsemm: " in capsys.readouterr().err


def test_peak_is_what_is_held_at_one_time() -> None:
    def function() -> None:
        first = torch.zeros(1000, dtype=torch.uint8)
        second = torch.zeros(2000, dtype=torch.uint8)
        del first
        third = torch.zeros(500, dtype=torch.uint8)
        del second, third

    assert 3000 <= peak.peak_bytes(function, torch.device("cpu")) < 3500
