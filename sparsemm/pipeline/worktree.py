"""Creates a git worktree for each model, so that DVC's locks never collide. Results return through DVC's run cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsemm.errors import PipelineError
from sparsemm.params import load_params
from sparsemm.pipeline.locks import locked
from sparsemm.pipeline.process import run

INPUTS = ("params.yaml", "dvc.yaml", ".dvc/config", "sparsemm", "csrc")  # dependencies of stages, except data
Line = Callable[[str], None]


def check_clean(root: Path) -> None:
    """Checks that the inputs of all stages are committed, because worktrees contain only what HEAD contains.

    Raises PipelineError if a file has changed; it names the files.
    """
    # The optional lock would disturb commits of other processes.
    command = ["git", "--no-optional-locks", "status", "--porcelain", "--", *INPUTS]
    changed = run(command, cwd=root).splitlines()
    if changed:
        files = ", ".join(line[3:] for line in changed[:5])
        hint = "commit them; worktrees start from the last commit"
        raise PipelineError(f"uncommitted changes in {files}", where=str(root), hint=hint)


def dvc_settings(root: Path) -> dict[str, Any]:
    """Returns DVC's settings for a repository, those of the user and the system included, by their sections.

    They are read here because DVC's commands take a second to start. Raises PipelineError if DVC cannot use them.
    """
    from dvc.config import Config, ConfigError

    folder = root.resolve() / ".dvc"
    if not folder.is_dir():
        raise PipelineError("not a DVC repository", where=str(root), hint="run `dvc init`, or name its root")
    try:
        return dict(Config(str(folder)))
    except ConfigError as error:
        hint = "correct the file; `dvc config --list` shows whether DVC can read it"
        raise PipelineError(f"DVC's settings: {error}", where=str(folder / "config"), hint=hint) from error


def cache_folder(root: Path) -> Path:
    """Returns the folder of a repository's DVC cache, which all worktrees share. Raises as `dvc_settings` does."""
    return Path(dvc_settings(root)["cache"].get("dir") or root / ".dvc" / "cache").resolve()


def has_remote(root: Path) -> bool:
    """Tells whether a DVC remote is configured. Raises as `dvc_settings` does."""
    return bool(dvc_settings(root)["remote"])


@contextmanager
def worktree(root: Path, name: str, on_line: Line | None = None) -> Iterator[tuple[Path, int]]:
    """Checks out HEAD under build/worktrees, sharing DVC's cache, and yields (folder, descriptor of its lock).

    Each name exists once: a second run of the same model waits, and then finds its results in the run cache. Files that
    a killed run left behind are removed first. Raises PipelineError if git or DVC fail.
    """
    root = root.resolve()
    folder = root / "build" / "worktrees" / name
    with locked(root / "build" / "locks" / f"worktree-{name}", on_wait=on_line) as lock:
        _remove(root, folder)
        try:
            # git does not wait for its own lock on the list of worktrees, and several models may start at once.
            with locked(root / "build" / "locks" / "git"):
                # --force twice, because a killed `git worktree add` leaves its folder locked.
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
    """Copies remotes and credentials of .dvc/config.local to the worktree, and points it at the shared cache."""
    local = root / ".dvc" / "config.local"
    if local.exists():
        copied = folder / ".dvc" / "config.local"
        copied.write_text(local.read_text(encoding="utf-8"), encoding="utf-8")
        copied.chmod(0o600)
    from dvc.config import Config

    # The path is relative because DVC can only write ASCII settings, and parent folders may have any name. DVC takes it
    # as relative to the current folder, and stores it as relative to the settings.
    shared = os.path.relpath(cache_folder(root))
    with Config(str(folder / ".dvc")).edit("local") as settings:
        settings["cache"]["dir"] = shared


def _link_checkpoints(root: Path, folder: Path) -> None:
    """Links local checkpoints that are not in git, such as downloads, into the worktree."""
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
    """Runs `dvc repro` for the targets in `folder` with that folder's own code, and returns its output.

    Raises PipelineError if a stage fails.
    """
    variables = own_code(folder) | {"SHELL": "/bin/sh", "PYTHONUNBUFFERED": "1"} | (environment or {})
    command = ["dvc", "repro", *(["--pull"] if pull else []), *targets]
    return run(command, cwd=folder, environment=variables, on_line=on_line, keep=keep)


def own_code(folder: Path) -> dict[str, str]:
    """Returns the variable that makes a command import the package of `folder`."""
    return {"PYTHONPATH": str(folder.resolve())}
