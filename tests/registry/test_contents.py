"""Tables over further data sets go along where they are of these results, and are no part of the identity."""

from __future__ import annotations

import pytest
import yaml

from sparsemm.errors import RegistryError
from sparsemm.registry.contents import FURTHER, gather
from sparsemm.registry.lockfile import read_stages

DATASET = "small-type"
WHOLE = {name.format(key="m", dataset=DATASET) for name in FURTHER}


@pytest.fixture
def made(workspace):
    made = workspace("m")
    made.also("m", DATASET)
    return made


def edit(made, change):
    path = made.root / "dvc.lock"
    value = yaml.safe_load(path.read_text())
    change(value["stages"])
    path.write_text(yaml.safe_dump(value))


@pytest.fixture
def version(tmp_path):
    return tmp_path / "version"


def further(made, folder):
    """The files of a version that are of further data sets; the others must be there in any case."""
    gather(read_stages(made.root, "m"), made.params, "m", made.root, folder)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"scores/m.safetensors", "scores/m.covariates.csv", "budgets/m.json"} <= names
    return {name for name in names if "/also/" in name}


def test_they_go_along_and_the_hash_is_that_of_a_version_without(made, workspace, version):
    assert further(made, version) == WHOLE
    for name in WHOLE:
        assert (version / name).read_bytes() == (made.root / "artifacts" / name).read_bytes()
    without = workspace("m")
    assert read_stages(made.root, "m").hash == read_stages(without.root, "m").hash


def test_without_them_a_version_is_whole(workspace, version):
    assert further(workspace("m"), version) == set()


def test_those_of_a_data_set_that_is_gone_stay_behind(made, version):
    made.raw["robustness"] = made.raw["studies"]["compared"] = {}
    (made.root / "params.yaml").write_text(yaml.safe_dump(made.raw))
    assert further(made, version) == set()


@pytest.mark.parametrize(
    "change",
    [
        lambda stages: stages.pop("align-also@m-small-type"),
        lambda stages: stages["chase-also@m-small-type"]["deps"][0].update(md5="0" * 32),
        lambda stages: stages["chase-also@m-small-type"]["outs"][1].update(md5="0" * 32),
        lambda stages: stages["chase-also@m-small-type"]["outs"].pop(),
        lambda stages: stages["chase-also@m-small-type"]["deps"][1].update(md5="0" * 32),
        lambda stages: stages["align-also@m-small-type"]["params"]["params.yaml"]["chase"].update(prompt="Read."),
    ],
    ids=["never ran", "another alignment", "edited", "not written", "another revision", "another prompt"],
)
def test_what_is_not_of_these_results_stays_behind(made, version, change):
    edit(made, change)
    assert further(made, version) == set()


def test_a_file_that_is_missing_takes_the_others_with_it(made, version):
    (made.root / "artifacts" / sorted(WHOLE)[0]).unlink()
    assert further(made, version) == set()


def test_malformed_entries_are_refused(made):
    edit(made, lambda stages: stages["chase-also@m-small-type"].pop("outs"))
    with pytest.raises(RegistryError, match="chase-also@m-small-type: malformed"):
        read_stages(made.root, "m")
