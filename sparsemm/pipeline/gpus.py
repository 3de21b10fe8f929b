"""Which GPU of this machine a job may use: a lock for each, so that two jobs never share one."""

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

PATIENCE = 60.0  # seconds for nvidia-smi, which a broken GPU can hold for ever


def visible_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES: those already visible to this process, else what nvidia-smi lists.

    Raises:
        PipelineError: if nvidia-smi does not answer.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip() and name.strip() != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        hint = "look at the driver, or set CUDA_VISIBLE_DEVICES"
        raise PipelineError(f"no answer within {PATIENCE:g} s", where="nvidia-smi", hint=hint) from error
    return listed.stdout.split() if listed.returncode == 0 else []


@contextmanager
def gpu(folder: Path | None = None, every: bool = False) -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
    """Take a free GPU; yields (variables for the job, descriptors of the locks to keep). Without GPUs: nothing.

    Args:
        folder: of the lock files; the same for every job of the machine.
        every: wait for all of them, for a model that one cannot hold.
    """
    names = [name.strip() for name in visible_gpus()]
    if not names:
        yield {}, ()
        return
    folder = folder or Path(tempfile.gettempdir()) / f"sparsemm-gpus-{os.getuid()}"
    paths = [folder / name.replace("/", "-") for name in names]
    with ExitStack() as held:
        if every:
            # Sorted: two such jobs never wait for each other.
            yield (
                {"CUDA_VISIBLE_DEVICES": ",".join(names)},
                tuple(held.enter_context(locked(path)) for path in sorted(paths)),
            )
            return
        while (taken := first_free(paths)) is None:
            time.sleep(0.5)
        index, descriptor = taken
        held.callback(os.close, descriptor)
        yield {"CUDA_VISIBLE_DEVICES": names[index]}, (descriptor,)
