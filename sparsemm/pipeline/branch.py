"""Checks that results are committed to the branch that params.yaml names, and to no other."""

from __future__ import annotations

from pathlib import Path

from sparsemm.errors import PipelineError
from sparsemm.params import load_params
from sparsemm.pipeline.process import run


def results_branch(root: Path) -> str:
    """Returns the branch that is checked out, which is the one that results are committed to.

    Raises:
        PipelineError: if it is not `pipeline.branch` of params.yaml, or no branch is checked out.
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
