"""Times of set-up, demo and installation: each step in turn in the clone, with the bytes that it leaves."""

from __future__ import annotations

import os
import subprocess

import pytest

from benchmarks import first_steps


def test_each_step_is_timed_and_its_bytes_are_counted(tmp_path, monkeypatch):
    steps = {
        "one": (["sh", "-c", "mkdir made && head -c 100000 /dev/zero > made/file && sleep 0.2"], "made"),
        "two": (["sh", "-c", 'test -z "$PYTHONPATH" && cp -r made again'], "again"),
    }
    monkeypatch.setattr(first_steps, "STEPS", steps)
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    rows = first_steps.measure(tmp_path)
    assert [row["step"] for row in rows] == ["one", "two"] and rows[0]["seconds"] >= 0.2
    assert all(100_000 <= row["bytes"] < 200_000 for row in rows)


def test_a_file_with_two_names_counts_once(tmp_path):
    (tmp_path / "file").write_bytes(bytes(100_000))
    before = first_steps.bytes_below(tmp_path)
    os.link(tmp_path / "file", tmp_path / "again")
    assert first_steps.bytes_below(tmp_path) == before >= 100_000


def test_a_step_that_fails_ends_it(tmp_path, monkeypatch):
    monkeypatch.setattr(first_steps, "STEPS", {"one": (["false"], "made"), "two": (["touch", "reached"], "made")})
    with pytest.raises(subprocess.CalledProcessError):
        first_steps.measure(tmp_path)
    assert not (tmp_path / "reached").exists()
