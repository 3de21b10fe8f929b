"""Runs a command that ends when the caller ends: `python -m sparsemm.pipeline.guard COMMAND...`.

Without it, a killed engine would leave DVC and its stage running, and that stage would overwrite the outputs of the
retry. The guard reads from a pipe whose write end only its parent holds. When the pipe closes, the guard stops the
whole process group.
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


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):  # macOS raises the latter for a group of zombies
        return False
    return True


def _reap(child: int) -> int | None:
    """Reaps every ended descendant, and returns the child's exit status if it was one of them."""
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
    """Ends a process group with SIGTERM, and with SIGKILL what still runs after `GRACE_SECONDS`."""
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
    """Runs the command in a process group of its own, and returns its exit code, or 143 if it was stopped."""
    if sys.platform == "linux":  # this process becomes the parent of orphaned descendants, so that all are reaped
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    stopping = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    except OSError as error:
        print(f"cannot run {command[0]}: {error}", file=sys.stderr)
        return 127
    status = None
    while status is None and not stopping:
        ready, _, _ = select.select([0], [], [], 0.1)
        if ready and not os.read(0, 1):  # the parent has ended, or closed the pipe to stop the command
            stopping = True
        status = _reap(child.pid)
    _stop(child.pid)  # also stops processes that the command left behind
    child.returncode = 143 if status is None else status
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
