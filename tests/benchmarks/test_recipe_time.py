"""The time of all recipes: which stages run in which round, side by side, and that a failure ends it."""

from __future__ import annotations

import subprocess

import pytest
import yaml

from benchmarks import recipe_time
from sparsemm.params import load_params
from tests.repository import ROOT

DVC = """#!/bin/sh
test "$PYTHONPATH" = "$PWD" && test "$OMP_NUM_THREADS" -ge 1 || exit 3
case "$*" in *small*) exit 4;; esac
echo "begin $*" >> log; sleep 0.3; echo "end $*" >> log
"""


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A repository of the params alone, and a dvc that writes down what it is asked for."""
    program = tmp_path / "bin" / "dvc"
    program.parent.mkdir()
    program.write_text(DVC)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    return copy


def test_every_model_has_its_search_and_its_table_and_before_that_what_they_need():
    params = load_params(ROOT / "params.yaml")
    (data,), budgets, proofs = recipe_time.rounds(params)
    assert data == ["download@calibration", "download@evaluation", *(f"assemble@{key}" for key in params.assembled)]
    assert budgets == [[f"align@{key}", f"chase@{key}", f"allocate@{key}"] for key in params.models]
    assert sorted(proofs) == sorted(
        [f"{stage}{key}"] for key in params.models for stage in ("tune@", "study@protocol-")
    )


def test_commands_of_a_round_run_side_by_side_and_are_timed(copy):
    result = recipe_time.measure(copy, 2)
    lines = (copy / "log").read_text().splitlines()
    assert lines[0].startswith("begin repro --single-item download@") and lines[1].startswith("end")
    assert [line.split()[0] for line in lines[2:4]] == ["begin", "begin"]  # two models at once
    assert len(result["rows"]) == len(lines) / 2 and all(row["seconds"] >= 0.3 for row in result["rows"])
    assert result["seconds"] < sum(row["seconds"] for row in result["rows"])


def test_a_stage_that_fails_ends_it(copy):
    raw = yaml.safe_load((copy / "params.yaml").read_text())
    raw["models"]["small"] = raw["models"]["tiny-qwen2-vl"]
    (copy / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    with pytest.raises(subprocess.CalledProcessError, match="exit status 4"):
        recipe_time.measure(copy, 1)
    assert "tune@" not in (copy / "log").read_text()
