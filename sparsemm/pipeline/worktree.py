"""A git worktree for each model, so that DVC's locks never meet; the results come back through its run cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsemm.errors import PipelineError
from sparsemm.params import load_params
from sparsemm.pipeline.locks import locked
from sparsemm.pipeline.process import run

INPUTS = ("params.yaml", "dvc.yaml", ".dvc/config", "sparsemm", "csrc")  # what a stage may depend on, but data
Line = Callable[[str], None]


def check_clean(root: Path) -> None:
    """Refuse a repository whose inputs differ from HEAD: a worktree would not see the difference.

    Raises:
        PipelineError: naming the changed files.
    """
    # Without its optional lock: a look must not be in the way of somebody's commit.
    command = ["git", "--no-optional-locks", "status", "--porcelain", "--", *INPUTS]
    changed = run(command, cwd=root).splitlines()
    if changed:
        files = ", ".join(line[3:] for line in changed[:5])
        raise PipelineError(
            f"uncommitted changes in {files}", where=str(root), hint="commit them; worktrees start from the last commit"
        )


def cache_folder(root: Path) -> Path:
    """DVC's cache of a repository; worktrees share it."""
    return Path(run(["dvc", "cache", "dir"], cwd=root).strip().splitlines()[-1]).resolve()


def has_remote(root: Path) -> bool:
    """Whether a DVC remote is configured."""
    return bool(run(["dvc", "remote", "list"], cwd=root).strip())


@contextmanager
def worktree(root: Path, name: str, on_line: Line | None = None) -> Iterator[tuple[Path, int]]:
    """A checkout of HEAD under build/worktrees that shares DVC's cache; yields (folder, lock to keep).

    One at a time for each name: a second run of the same model waits, and then finds its results in the run cache.
    What a killed run left behind is removed first.

    Raises:
        PipelineError: if git or DVC fail.
    """
    root = root.resolve()
    folder = root / "build" / "worktrees" / name
    with locked(root / "build" / "locks" / f"worktree-{name}", on_wait=on_line) as lock:
        _remove(root, folder)
        try:
            # git's own lock on its list of worktrees is held for an instant, but several models may ask at once.
            with locked(root / "build" / "locks" / "git"):
                # Twice --force: a killed `git worktree add` leaves its place locked.
                options = ["--quiet", "--force", "--force", "--detach"]
                run(["git", "worktree", "add", *options, str(folder), "HEAD"], cwd=root)
            _local_settings(root, folder)
            _link_checkpoints(root, folder)
            yield folder, lock
        finally:
            _remove(root, folder)


def _remove(root: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with locked(root / "build" / "locks" / "git"):
        run(["git", "worktree", "prune"], cwd=root)


def _local_settings(root: Path, folder: Path) -> None:
    """Remotes and credentials that live in .dvc/config.local are the worktree's too; so is the cache."""
    local = root / ".dvc" / "config.local"
    if local.exists():
        copied = folder / ".dvc" / "config.local"
        copied.write_text(local.read_text(encoding="utf-8"), encoding="utf-8")
        copied.chmod(0o600)
    # A relative path, because DVC cannot write a setting that is not ASCII, and folders above may be called anything.
    run(["dvc", "cache", "dir", "--local", os.path.relpath(cache_folder(root), folder.resolve())], cwd=folder)


def _link_checkpoints(root: Path, folder: Path) -> None:
    """Local checkpoints that git does not know (a watched folder, a download) are linked, not copied."""
    for entry in load_params(folder / "params.yaml").models.values():
        path = Path(entry.checkpoint)
        if not path.is_absolute() and (root / path).is_dir() and not (folder / path).exists():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            os.symlink(root / path, folder / path, target_is_directory=True)


def reproduce(
    folder: Path,
    targets: list[str],
    *,
    pull: bool = False,
    on_line: Line | None = None,
    keep: tuple[int, ...] = (),
    environment: dict[str, str] | None = None,
) -> str:
    """`dvc repro` of the targets in `folder`, with that folder's own code.

    Raises:
        PipelineError: if a stage fails.
    """
    variables = {"PYTHONPATH": str(folder.resolve()), "SHELL": "/bin/sh", "PYTHONUNBUFFERED": "1"}
    command = ["dvc", "repro", *(["--pull"] if pull else []), *targets]
    return run(command, cwd=folder, environment=variables | (environment or {}), on_line=on_line, keep=keep)
