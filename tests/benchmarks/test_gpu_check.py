"""The GPU check goes on when a part fails, hangs or is out of time, and always writes what it has."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu_check


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    assert gpu_check.main() == 1
    assert "no CUDA device" in capsys.readouterr().err


def test_a_part_that_crashes_or_hangs_costs_the_others_nothing(monkeypatch, tmp_path):
    def fake(command, timeout, **_):
        part = command[-1]
        if part == "hangs":
            raise subprocess.TimeoutExpired(command, timeout, output=b'{"op": 1}\nhalf a line')
        if part == "crashes":
            return subprocess.CompletedProcess(command, -6, '{"op": 2}\n', "CUDA error")
        return subprocess.CompletedProcess(command, 0, 'a warning\n{"op": 3}\n', "")

    monkeypatch.setattr(gpu_check.subprocess, "run", fake)
    monkeypatch.setattr(gpu_check, "PARTS", dict.fromkeys(["hangs", "crashes", "works"], (7, None)))
    report = gpu_check.run(tmp_path)
    assert json.loads((tmp_path / "gpu.json").read_text()) == report
    assert report["hangs"]["results"] == [{"op": 1}] and report["hangs"]["error"] == "stopped after 7 s"
    assert report["crashes"]["results"] == [{"op": 2}] and report["crashes"]["error"] == "CUDA error"
    assert report["works"]["results"] == [{"op": 3}] and "error" not in report["works"]
    again = gpu_check.run(tmp_path, limit=0, parts=["works"])
    assert again["works"]["error"] == "no time left" and again["hangs"] == report["hangs"]


def test_an_unknown_part_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["gpu_check", str(tmp_path), "graph", "grahp"])
    assert gpu_check.main() == 1 and not any(tmp_path.iterdir())
    assert "unknown parts grahp; use some of build, agreement" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device")
def test_a_part_is_a_process_that_prints_lines(tmp_path):
    report = gpu_check.run(tmp_path, parts=["graph"])
    entry = report["graph"]
    assert entry["results"] == [] and "CUDA" in entry["error"]  # there is none here, and it says so
