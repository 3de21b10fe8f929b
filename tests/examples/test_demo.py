"""The demo: a copy per commit, continued where it stopped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from examples import demo

DVC = "Running stage 'align@one':\n> sparsemm align one\nRunning stage 'report':"


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """What the demo does in a folder with a Git repository: ("copy", folder) and ("dvc", exit status)."""
    noted, status, run, popen = [], [0], subprocess.run, subprocess.Popen

    def copy_of_head(root, folder, shrink):
        folder.mkdir(parents=True, exist_ok=True)
        noted.append("copy")

    def started(command, **options):
        if Path(command[0]).name != "dvc":
            return popen(command, **options)
        noted.append(f"dvc {status[0]}")
        return popen([sys.executable, "-c", f"print({DVC!r}); raise SystemExit({status[0]})"], **options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["demo"])
    monkeypatch.setattr(demo, "copy_of_head", copy_of_head)
    monkeypatch.setattr(demo.subprocess, "Popen", started)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    for arguments in (["init", "-q"], ["commit", "-qm", "one", "--allow-empty"]):
        run([*git, *arguments], check=True)
    return noted, status, lambda: run([*git, "commit", "-qm", "two", "--allow-empty"], check=True)


def test_a_stopped_demo_continues_and_another_commit_begins_anew(calls, capsys):
    noted, status, commit = calls
    status[0] = 1
    assert demo.main() == 1 and "continues" in capsys.readouterr().err
    status[0] = 0
    assert demo.main() == 0
    printed = capsys.readouterr().out
    assert "index.html" in printed and DVC in printed
    assert {line.split()[2] for line in printed.splitlines() if " s  " in line} == {"align@one", "report"}
    assert noted == ["copy", "dvc 1", "dvc 0"]
    commit()
    assert demo.main() == 0 and noted[3:] == ["copy", "dvc 0"]


def test_a_stage_lasts_until_the_next_one_or_the_end(monkeypatch):
    times = iter([1.0, 4.0, 14.0])
    monkeypatch.setattr(demo, "time", SimpleNamespace(monotonic=lambda: next(times)))
    lines = (f"{line}\n" for line in DVC.splitlines())
    assert demo.stage_seconds(lines) == {"align@one": 3.0, "report": 10.0}
