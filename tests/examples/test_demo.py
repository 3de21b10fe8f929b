"""The demo: a copy per commit, continued where it stopped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from examples import demo


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """What the demo does in a folder with a Git repository: ("copy", folder) and ("dvc", exit status)."""
    noted, status, run = [], [0], subprocess.run

    def copy_of_head(root, folder, shrink):
        folder.mkdir(parents=True, exist_ok=True)
        noted.append("copy")

    def commands(command, **options):
        if Path(command[0]).name != "dvc":
            return run(command, **options)
        noted.append(f"dvc {status[0]}")
        return subprocess.CompletedProcess(command, status[0])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["demo"])
    monkeypatch.setattr(demo, "copy_of_head", copy_of_head)
    monkeypatch.setattr(demo.subprocess, "run", commands)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    for arguments in (["init", "-q"], ["commit", "-qm", "one", "--allow-empty"]):
        run([*git, *arguments], check=True)
    return noted, status, lambda: run([*git, "commit", "-qm", "two", "--allow-empty"], check=True)


def test_a_stopped_demo_continues_and_another_commit_begins_anew(calls, capsys):
    noted, status, commit = calls
    status[0] = 1
    assert demo.main() == 1 and "continues" in capsys.readouterr().err
    status[0] = 0
    assert demo.main() == 0 and "index.html" in capsys.readouterr().out
    assert noted == ["copy", "dvc 1", "dvc 0"]
    commit()
    assert demo.main() == 0 and noted[3:] == ["copy", "dvc 0"]
