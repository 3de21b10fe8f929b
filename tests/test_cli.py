"""The command as a process: what it prints is printed, threads and exit functions end as they would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sparsemm

ROOT = Path(__file__).parents[1]
CALL = """
import atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from sparsemm.cli import command
atexit.register(print, "exit function")
threading.Thread(target=lambda: (time.sleep(0.5), print("thread ended"))).start()
pool = ThreadPoolExecutor(2)
pool.submit(lambda: (time.sleep(0.2), print("pool ended")))
command()
"""


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", CALL, *arguments], cwd=ROOT, text=True, timeout=60, **options)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["params"], 0, "params.yaml is valid"),
        (["--params", "nowhere.yaml", "params"], 1, "nowhere.yaml"),
        (["study", "nothing", "tiny-qwen2-vl"], 1, "no study 'nothing'"),
        (["nothing"], 2, "invalid choice"),
        (["--version"], 0, f"sparsemm {sparsemm.__version__}"),
        (["--help"], 0, "usage: sparsemm"),
    ],
    ids=str,
)
def test_what_was_begun_ends_before_the_process(arguments, code, said):
    done = run(*arguments, capture_output=True)
    assert done.returncode == code and said in done.stdout + done.stderr
    # In any order, perhaps in one line: threads write text and newline apart. Exit functions come after all threads.
    began = [done.stdout.count(what) for what in ("pool ended", "thread ended", "exit function")]
    assert began == [1, 1, 1] and done.stdout.endswith("exit function\n")


def test_nobody_reads_what_it_prints():
    """As in `sparsemm params --schema | head -1`."""
    call = f"{sys.executable} -m sparsemm.cli params --schema | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", call], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == "" and done.returncode in (0, 120)


def test_an_error_of_ours_has_its_traceback(tmp_path):
    call = "import sparsemm.cli as cli; cli._params = lambda given: 1 / 0; cli.command()"
    done = subprocess.run([sys.executable, "-c", call, "params"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
