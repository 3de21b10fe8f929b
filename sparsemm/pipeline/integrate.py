"""The one writer of dvc.lock: take finished stages from the run cache, and commit what they say."""

from __future__ import annotations

from pathlib import Path

from sparsemm.pipeline.locks import repository_locked
from sparsemm.pipeline.process import run
from sparsemm.pipeline.worktree import Line, reproduce

COMMITTED = ("dvc.lock", "artifacts")  # artifacts that DVC caches are in .gitignore


def integrate(
    root: Path, targets: list[str], message: str, *, pull: bool = False, on_line: Line | None = None
) -> str | None:
    """Reproduce the targets in the repository itself and commit dvc.lock and the small result files.

    Stages that a worktree has finished come from the run cache and cost their copying. A second integrator of the
    same repository waits; killed half-way, the next one does the rest.

    Args:
        root: the repository.
        targets: DVC stages; empty means all.
        message: of the commit.
        pull: fetch from the DVC remote what is not here.

    Returns:
        the commit, or None if nothing had changed.

    Raises:
        PipelineError: if a stage or git fails.
    """
    with repository_locked(root, on_line) as lock:
        reproduce(root, targets, pull=pull, on_line=on_line, keep=(lock,))
        return commit(root, [name for name in COMMITTED if (root / name).exists()], message, keep=(lock,))


def commit(root: Path, paths: list[str], message: str, keep: tuple[int, ...] = ()) -> str | None:
    """Commit these paths and nothing else; the new commit, or None if they hold no change.

    Raises:
        PipelineError: if git fails.
    """
    run(["git", "add", "--", *paths], cwd=root, keep=keep)
    listed = run(["git", "diff", "--cached", "--name-only", "-z", "--", *paths], cwd=root, keep=keep)
    changed = [name for name in listed.split("\0") if name]
    if not changed:
        return None
    # A worker's machine need not have an identity; one that is configured wins over these.
    known = run(["git", "config", "--default", "", "--get", "user.email"], cwd=root, keep=keep).strip()
    identity = [] if known else ["-c", "user.name=sparsemm", "-c", "user.email=sparsemm@localhost"]
    run(["git", *identity, "commit", "--quiet", "--message", message, "--", *changed], cwd=root, keep=keep)
    return run(["git", "rev-parse", "HEAD"], cwd=root, keep=keep).strip()
