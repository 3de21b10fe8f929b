"""Run a command so that it ends when whoever wanted it does: `python -m sparsemm.pipeline.guard COMMAND...`.

A killed engine leaves DVC running, and DVC's stage too, which then overwrites the outputs of the retry. The guard
holds the read end of a pipe whose write end only its parent has: at its end the guard stops the whole process group.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time

GRACE_SECONDS = 10.0
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def _adopt_orphans() -> None:
    """Become the parent of descendants that lose theirs, so that none is left unreaped (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS says this of a group of zombies
        return False
    return True


def _reap(child: int) -> int | None:
    """Collect every ended descendant; the child's exit status where it is among them."""
    status = None
    while True:
        try:
            pid, code = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == child:
            status = os.waitstatus_to_exitcode(code)


def _stop(group: int) -> None:
    """End a process group: SIGTERM, and SIGKILL for what is still there after `GRACE_SECONDS`."""
    for signal_number, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        if not _alive(group):
            return
        try:
            os.killpg(group, signal_number)
        except ProcessLookupError:
            return
        until = time.monotonic() + seconds
        while _alive(group) and time.monotonic() < until:
            _reap(group)
            time.sleep(0.02)


def main(command: list[str]) -> int:
    """Run the command in a process group of its own; its exit code, or 143 if it was stopped."""
    _adopt_orphans()
    asked = [False]

    def ask(_number: int, _frame: object) -> None:
        asked[0] = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ask)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    except OSError as error:
        print(f"cannot run {command[0]}: {error}", file=sys.stderr)
        return 127
    status = None
    while status is None and not asked[0]:
        ready, _, _ = select.select([0], [], [], 0.1)
        if ready and not os.read(0, 1):  # the parent is gone, or wants an end
            asked[0] = True
        status = _reap(child.pid)
    _stop(child.pid)  # also what the command left behind
    child.returncode = 143 if status is None else status
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
