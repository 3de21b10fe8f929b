"""Assigns GPUs of this machine to jobs. Each GPU has a lock, so that two jobs never share one."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sparsemm.errors import PipelineError
from sparsemm.pipeline.locks import first_free, locked

PATIENCE = 60.0  # seconds to wait for nvidia-smi, which hangs on a broken GPU


def visible_gpus() -> list[str]:
    """Returns names for CUDA_VISIBLE_DEVICES: the GPUs already visible to this process, else those nvidia-smi lists.

    Raises PipelineError if nvidia-smi does not answer.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() and name.strip() != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        hint = "check the driver, or set CUDA_VISIBLE_DEVICES"
        raise PipelineError(f"no answer within {PATIENCE:g} s", where="nvidia-smi", hint=hint) from error
    return listed.stdout.split() if listed.returncode == 0 else []


@contextmanager
def gpu(folder: Path | None = None, every: bool = False) -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
    """Waits for a free GPU and yields (environment variables for the job, descriptors of the locks to keep).

    Both are empty on a machine without GPUs. `folder` holds the lock files, the same for every job of the machine. With
    `every` it waits for all GPUs, for a model that does not fit on one.
    """
    names = [name.strip() for name in visible_gpus()]
    if not names:
        yield {}, ()
        return
    folder = folder or Path(tempfile.gettempdir()) / f"sparsemm-gpus-{os.getuid()}"
    paths = [folder / name.replace("/", "-") for name in names]
    with ExitStack() as held:
        if every:
            # All jobs lock in sorted order, so two of them never wait for each other.
            descriptors = tuple(held.enter_context(locked(path)) for path in sorted(paths))
            yield {"CUDA_VISIBLE_DEVICES": ",".join(names)}, descriptors
            return
        while (taken := first_free(paths)) is None:
            time.sleep(0.5)
        index, descriptor = taken
        held.callback(os.close, descriptor)
        yield {"CUDA_VISIBLE_DEVICES": names[index]}, (descriptor,)
