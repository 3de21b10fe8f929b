import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsemm.errors import PipelineError
from sparsemm.pipeline.process import run

SLEEPER = "import time, subprocess, sys; subprocess.Popen(['sleep', '600']); print('up', flush=True); time.sleep(600)"


def wait_for(condition, seconds=20.0):
    """Poll until the condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "did not happen"
        time.sleep(0.05)


def group_of(folder):
    """Process ids whose working folder is `folder`, zombies left out."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "cwd") == str(folder):
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and int(entry.name) != os.getpid():
                    found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_lines_come_as_they_are_printed(tmp_path):
    lines = []
    printed = run(
        [sys.executable, "-c", "import sys; print('a'); print('b', file=sys.stderr)"],
        cwd=tmp_path,
        on_line=lines.append,
    )
    assert sorted(lines) == ["a", "b"] and sorted(printed.split()) == ["a", "b"]


def test_variables_reach_the_command(tmp_path):
    code = "import os; print(os.environ['CANARY'])"
    assert run([sys.executable, "-c", code], cwd=tmp_path, environment={"CANARY": "x"}).strip() == "x"


def test_a_failure_shows_its_last_lines_and_code(tmp_path):
    code = "import sys\nfor i in range(100): print('line', i)\nsys.exit(7)"
    with pytest.raises(PipelineError, match="ended with 7") as caught:
        run([sys.executable, "-c", code], cwd=tmp_path)
    assert "line 99" in str(caught.value) and "line 10\n" not in str(caught.value)


def test_death_by_signal_is_a_failure(tmp_path):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(PipelineError, match="ended with 137"):
        run([sys.executable, "-c", code], cwd=tmp_path)


def test_a_command_that_does_not_exist(tmp_path):
    with pytest.raises(PipelineError, match="cannot run no-such-command"):
        run(["no-such-command"], cwd=tmp_path)


def test_what_a_command_leaves_behind_is_ended(tmp_path):
    code = "import subprocess; subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL); print('done')"
    assert run([sys.executable, "-c", code], cwd=tmp_path).strip() == "done"
    assert group_of(tmp_path) == []


def test_an_exception_here_ends_the_whole_tree(tmp_path):
    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([sys.executable, "-c", SLEEPER], cwd=tmp_path, on_line=stop)
    assert group_of(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent_takes_the_tree_with_it(tmp_path, number):
    work = tmp_path / "work"
    work.mkdir()
    code = (
        "import sys, pathlib; from sparsemm.pipeline.process import run; "
        f"run([sys.executable, '-c', {SLEEPER!r}], cwd=pathlib.Path({str(work)!r}))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    wait_for(lambda: len(group_of(work)) >= 3)  # guard, sleeper and its child
    parent.send_signal(number)
    parent.wait()
    wait_for(lambda: group_of(work) == [])


def test_a_command_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    from sparsemm.pipeline import guard

    monkeypatch.setattr(guard, "GRACE_SECONDS", 0.3)
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], process_group=0, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"up\n"
    guard._stop(child.pid)
    child.stdout.close()
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)
    child.returncode = -9  # reaped by the guard


def test_progress_is_seen_while_it_happens_and_leaves_no_thread(tmp_path):
    """A flow shows what a stage prints line by line; a thread would be in the way of processes that fork."""
    code = (
        "import threading\n"
        "from sparsemm import progress\n"
        "progress.EVERY = 0.0\n"
        "counts = [threading.active_count() for _ in progress.progress(range(3), 3, 'chase m')]\n"
        "print(counts)\n"
    )
    lines = []
    run([sys.executable, "-c", code], cwd=tmp_path, on_line=lines.append)
    *shown, counts = lines
    assert counts == "[1, 1, 1]" and all(line.startswith("chase m:") for line in shown)
    assert all(any(part in line for line in shown) for part in ("0/3", "1/3", "2/3", "3/3"))
