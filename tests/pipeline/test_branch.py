"""Results are committed to the branch that params.yaml names, and never by surprise."""

from __future__ import annotations

import pytest
import yaml

from sparsemm.errors import PipelineError
from sparsemm.pipeline.branch import results_branch
from sparsemm.pipeline.integrate import integrate


def name_branch(repository, branch):
    path = repository.root / "params.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"pipeline": {"branch": branch}}))
    repository.commit("branch")


def test_without_a_name_it_is_the_one_that_is_checked_out(repository):
    assert results_branch(repository.root) == "main"
    repository.git("switch", "-qc", "results")
    assert results_branch(repository.root) == "results"


def test_another_branch_is_refused_before_anything_runs(repository):
    name_branch(repository, "results")
    before = repository.git("rev-parse", "HEAD")
    with pytest.raises(PipelineError, match="branch main is checked out, but results go to results"):
        integrate(repository.root, [], "Results")
    assert not repository.called() and repository.git("rev-parse", "HEAD") == before
    repository.git("switch", "-qc", "results")
    integrate(repository.root, ["allocate@one"], "Results")
    assert repository.git("rev-parse", "main") == before != repository.git("rev-parse", "results")


def test_a_commit_that_no_branch_would_hold_is_refused(repository):
    repository.git("switch", "-q", "--detach")
    with pytest.raises(PipelineError, match="no branch is checked out"):
        results_branch(repository.root)
