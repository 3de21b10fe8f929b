"""The time of all recipes: what is asked for, the seconds of every stage, and that a failure ends it."""

from __future__ import annotations

import subprocess

import pytest

from benchmarks import recipe_time
from sparsemm.params import load_params
from tests.repository import ROOT

DVC = """#!/bin/sh
test "$PYTHONPATH" = "$PWD" || exit 3
echo "$*" >> log
echo "Stage 'download@calibration' didn't change, skipping"
sleep 0.3; echo "Running stage 'first@a':"; sleep 0.3; echo "> sparsemm first a"
echo "Running stage 'second@b':"; test -e fails && exit 4; sleep 0.3
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


def test_the_search_and_the_table_of_every_model_are_asked_for_once_their_checkpoints_are_there(copy):
    result = recipe_time.measure(copy)
    first, second = (line.split() for line in (copy / "log").read_text().splitlines())
    params = load_params(ROOT / "params.yaml")
    assert first == ["repro", *(f"assemble@{key}" for key in params.assembled)]
    assert second == ["repro", *(f"{stage}{key}" for key in params.models for stage in ("tune@", "study@protocol-"))]
    assert [row["stage"] for row in result["rows"]] == ["first@a", "second@b"] * 2
    assert all(row["seconds"] >= 0.3 for row in result["rows"])
    assert result["seconds"] >= 0.3 + sum(row["seconds"] for row in result["rows"]) - 0.2


def test_a_stage_that_fails_ends_it(copy):
    (copy / "fails").touch()
    with pytest.raises(subprocess.CalledProcessError, match="exit status 4"):
        recipe_time.measure(copy)
