import os
import signal
import subprocess
import sys
import threading

from sparsemm.pipeline.locks import first_free, locked
from sparsemm.pipeline.process import run


def test_a_second_holder_waits_and_is_told(tmp_path):
    path, told, order = tmp_path / "deep" / "lock", [], []
    with locked(path):
        other = threading.Thread(target=lambda: _hold(path, told, order))
        other.start()
        while not told:
            pass
        order.append("first leaves")
    other.join()
    assert order == ["first leaves", "second holds"] and len(told) == 1 and "lock" in told[0]


def _hold(path, told, order):
    with locked(path, on_wait=told.append):
        order.append("second holds")


def test_a_killed_holder_leaves_no_lock(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import pathlib, sys, time; from sparsemm.pipeline.locks import locked\n"
        f"with locked(pathlib.Path({str(path)!r})): print('held', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"held\n"
    assert first_free([path]) is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    with locked(path):
        pass


def test_a_kept_lock_is_held_until_the_command_has_ended(tmp_path):
    path = tmp_path / "lock"
    seen = []
    with locked(path) as lock:
        run(
            [sys.executable, "-c", "print('x')"],
            cwd=tmp_path,
            keep=(lock,),
            on_line=lambda _: seen.append(first_free([path])),
        )
    assert seen == [None]
    free = first_free([path])
    assert free is not None and free[0] == 0
    os.close(free[1])


def test_first_free_passes_over_what_is_taken(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    with locked(paths[0]):
        taken = first_free(paths)
        assert taken is not None and taken[0] == 1
        with locked(paths[2]):
            assert first_free(paths) is None
        os.close(taken[1])
