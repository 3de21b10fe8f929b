"""Integrates finished stages from DVC's run cache into the repository. It is the one writer of dvc.lock."""

from __future__ import annotations

from pathlib import Path

from sparsemm.errors import PipelineError
from sparsemm.params import load_params
from sparsemm.pipeline.locks import repository_locked
from sparsemm.pipeline.process import run
from sparsemm.pipeline.worktree import Line, reproduce

COMMITTED = ("dvc.lock", "artifacts")  # artifacts that DVC caches are in .gitignore


def results_branch(root: Path) -> str:
    """Returns the branch that is checked out, which is the one that results are committed to.

    Raises PipelineError if it is not `pipeline.branch` of params.yaml, or no branch is checked out.
    """
    branch = run(["git", "branch", "--show-current"], cwd=root).strip()
    wanted = load_params(root / "params.yaml").pipeline.branch
    if not branch:
        hint = f"git switch {wanted or 'BRANCH'}"
        raise PipelineError("no branch is checked out, so commits of results would be lost", where=str(root), hint=hint)
    if wanted is not None and branch != wanted:
        hint = f"`git switch {wanted}` (`-c` creates it), or change pipeline.branch in params.yaml"
        raise PipelineError(f"branch {branch} is checked out, but results go to {wanted}", where=str(root), hint=hint)
    return branch


def integrate(
    root: Path, targets: list[str], message: str, *, pull: bool = False, on_line: Line | None = None
) -> str | None:
    """Reproduces the targets in the repository itself and commits dvc.lock and the small result files.

    Stages that were finished in a worktree are only copied from the run cache. A second integrator of the same
    repository waits. If one is killed, the next one does the rest.

    No target means all stages. With `pull`, missing files are downloaded from the DVC remote. Returns the commit, or
    None if nothing had changed. Raises PipelineError if a stage or git fails, or another branch than `pipeline.branch`
    is checked out.
    """
    with repository_locked(root, on_line) as lock:
        results_branch(root)
        reproduce(root, targets, pull=pull, on_line=on_line, keep=(lock,))
        return commit(root, [name for name in COMMITTED if (root / name).exists()], message, keep=(lock,))


def commit(root: Path, paths: list[str], message: str, keep: tuple[int, ...] = ()) -> str | None:
    """Commits these paths and nothing else, and returns the new commit, or None if they have not changed.

    Raises PipelineError if git fails.
    """
    run(["git", "add", "--", *paths], cwd=root, keep=keep)
    listed = run(["git", "diff", "--cached", "--name-only", "-z", "--", *paths], cwd=root, keep=keep)
    changed = [name for name in listed.split("\0") if name]
    if not changed:
        return None
    # A worker's machine may have no git identity; one that is configured takes precedence.
    email = run(["git", "config", "--default", "", "--get", "user.email"], cwd=root, keep=keep).strip()
    identity = [] if email else ["-c", "user.name=sparsemm", "-c", "user.email=sparsemm@localhost"]
    run(["git", *identity, "commit", "--quiet", "--message", message, "--", *changed], cwd=root, keep=keep)
    return run(["git", "rev-parse", "HEAD"], cwd=root, keep=keep).strip()
