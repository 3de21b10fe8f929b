"""Small copies of the repository: valid params, no results, and the original untouched."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from flows.copies import copy_of_head, demo, smallest
from sparsemm.params import load_params

ROOT = Path(__file__).parents[2]


def git(root, *arguments):
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments], cwd=root, check=True)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A repository with the real params.yaml, one result and a file that was not committed."""
    root = tmp_path_factory.mktemp("original")
    (root / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (root / "artifacts").mkdir()
    (root / "artifacts" / "table.csv").write_text("1", encoding="utf-8")
    (root / "dvc.lock").write_text("{}", encoding="utf-8")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "all")
    (root / "later").touch()
    return root


@pytest.mark.parametrize("shrink", [smallest, demo])
def test_a_copy_has_valid_small_params_and_no_results(original, tmp_path, shrink):
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "old").touch()
    assert copy_of_head(original, folder, shrink) == folder.resolve()
    assert sorted(path.name for path in folder.iterdir()) == [".git", "params.yaml"]
    params, own = load_params(folder / "params.yaml"), load_params(ROOT / "params.yaml")
    assert len(params.models) == 1 and params.evaluate.samples < own.evaluate.samples
    assert set(params.assembled) <= set(params.models)
    assert set(params.studies.enabled()) <= set(own.studies.enabled())
    status = subprocess.run(["git", "status", "--porcelain"], cwd=folder, check=True, capture_output=True, text=True)
    assert status.stdout == ""
    assert (original / "artifacts" / "table.csv").exists()


def test_the_smoke_run_has_a_study_of_every_group(original, tmp_path):
    folder = copy_of_head(original, tmp_path / "copy", smallest)
    own = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["studies"]
    made = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))["studies"]
    assert {group for group, one in made.items() if one} == {group for group, one in own.items() if one}
