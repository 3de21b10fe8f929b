"""Runs a command, passes on its output line by line, and leaves no process behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from sparsemm.errors import PipelineError

TAIL = 20  # last lines of output that an error shows


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
    keep: Iterable[int] = (),
) -> str:
    """Runs a command under `sparsemm.pipeline.guard`.

    Args:
        command: program and arguments; no shell is involved.
        cwd: folder to run in.
        environment: variables that are added to this process's own.
        on_line: called with each line of stdout and stderr.
        keep: file descriptors of locks that must be held until the command has really ended, even if this process
            is killed first.

    Returns:
        everything that the command printed.

    Raises:
        PipelineError: if the exit code is not 0; the message shows the last lines of output.
    """
    guarded = [sys.executable, "-m", "sparsemm.pipeline.guard", *command]
    variables = {**os.environ, **(environment or {})}
    # The guard must be importable from whatever folder the command runs in.
    home = str(Path(__file__).parents[2])
    variables["PYTHONPATH"] = os.pathsep.join(p for p in (variables.get("PYTHONPATH", ""), home) if p)
    # dvc and sparsemm lie beside this Python, whose environment need not be activated.
    variables["PATH"] = os.pathsep.join((variables.get("PATH", os.defpath), str(Path(sys.executable).parent)))
    process = subprocess.Popen(
        guarded,
        cwd=cwd,
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        bufsize=1,
        start_new_session=True,
        pass_fds=tuple(keep),
    )
    assert process.stdin is not None and process.stdout is not None
    lines: list[str] = []
    last: deque[str] = deque(maxlen=TAIL)
    try:
        for line in process.stdout:
            lines.append(line)
            if line.strip():
                last.append(line.rstrip())
                if on_line is not None:
                    on_line(line.rstrip())
    finally:
        process.stdin.close()  # a guard that still runs now ends its command
        process.stdout.close()
        code = process.wait()
    if code != 0:
        shown = "\n  ".join(last)
        raise PipelineError(f"`{' '.join(command)}` ended with {code}:\n  {shown}", where=str(cwd))
    return "".join(lines)
