"""dvc.lock read as YAML: what ran, with what, and whether it is still there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from sparsemm.errors import RegistryError
from sparsemm.files import write_json
from sparsemm.registry.lockfile import check_params, md5_of, read_stages


def edit(made, change):
    path = made.root / "dvc.lock"
    value = yaml.safe_load(path.read_text())
    change(value["stages"])
    path.write_text(yaml.safe_dump(value))


def test_the_hash_is_of_the_entries_and_of_nothing_else(workspace):
    made, same = workspace("a", "b"), workspace("a")
    first = read_stages(made.root, "a")
    assert first.hash == read_stages(same.root, "a").hash != read_stages(made.root, "b").hash
    assert first.sha256 != read_stages(same.root, "a").sha256  # of the whole file
    assert set(first.outs()) >= {"artifacts/scores/a.safetensors", "artifacts/profile/a.csv"}
    for change in (
        lambda stages: stages["chase@a"].update(cmd="sparsemm chase a --other"),
        lambda stages: stages["chase@a"]["params"]["params.yaml"]["chase"].update(batch_size=1),
        lambda stages: stages["profile@a"]["outs"][0].update(md5="0" * 32),
    ):
        edit(made, change)
        assert read_stages(made.root, "a").hash != first.hash
        made.lock("a")
    assert read_stages(made.root, "a").hash == first.hash


@pytest.mark.parametrize("stage", ["align", "chase", "allocate", "evaluate", "profile"])
def test_a_stage_that_never_ran_is_named(workspace, stage):
    made = workspace("a")
    edit(made, lambda stages: stages.pop(f"{stage}@a"))
    with pytest.raises(RegistryError, match=f"never ran: {stage}@a"):
        read_stages(made.root, "a")


def test_a_stage_that_ran_on_an_older_output_is_named(workspace):
    made = workspace("a")
    edit(made, lambda stages: stages["evaluate@a"]["deps"][0].update(md5="0" * 32))
    with pytest.raises(RegistryError, match="evaluate@a ran on an older artifacts/scores/a.safetensors"):
        read_stages(made.root, "a")


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"a: [", b"[]", b"schema: '2.0'", b"schema: '1.0'\nstages: {}", b"schema: '2.0'\nstages: []"],
)
def test_what_is_no_lock_file_is_refused(workspace, content):
    made = workspace("a")
    (made.root / "dvc.lock").write_bytes(content)
    with pytest.raises(RegistryError, match="dvc.lock"):
        read_stages(made.root, "a")
    (made.root / "dvc.lock").unlink()
    with pytest.raises(RegistryError, match="cannot be read"):
        read_stages(made.root, "a")


@pytest.mark.parametrize(
    "entry", [None, [], "x", {}, {"outs": 1}, {"outs": [{"path": 1, "md5": "x"}]}, {"outs": [], "params": {"p": 1}}]
)
def test_malformed_entries_are_refused(workspace, entry):
    made = workspace("a")
    edit(made, lambda stages: stages.update({"chase@a": entry}))
    with pytest.raises(RegistryError, match="chase@a: malformed"):
        read_stages(made.root, "a")


def test_other_params_than_those_it_ran_with_are_refused(workspace):
    made = workspace("a", "b")
    stages = read_stages(made.root, "a")
    check_params(stages, made.params, made.root)
    for section, name, value in (("chase", "prompt", "Say it."), ("profile", "budget", 12), ("evaluate", "seed", 1)):
        before = made.raw[section][name]
        made.raw[section][name] = value
        (made.root / "params.yaml").write_text(yaml.safe_dump(made.raw))
        with pytest.raises(RegistryError, match=f"another value of {section}"):
            check_params(stages, made.params, made.root)
        made.raw[section][name] = before
    made.raw["models"]["b"]["revision"] = "r2"  # another model's entry
    made.raw["models"]["a"] |= {"note": "seen", "tune": {"samples": 6}}  # what none of these stages reads
    (made.root / "params.yaml").write_text(yaml.safe_dump(made.raw))
    check_params(stages, made.params, made.root)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"revision": "r2"}, "align@a ran with another value of model.revision"),
        ({"dtype": "bfloat16"}, "align@a ran with another value of model.dtype"),
        ({"allocate": {"rho": 0.5}}, "allocate@a ran with another value of overrides.allocate"),
        ({"profile": {"repetitions": 9}}, "profile@a ran with another value of overrides.profile"),
    ],
)
def test_another_entry_of_the_model_than_it_ran_with_is_refused(workspace, entry, message):
    made = workspace("a", "b")
    stages = read_stages(made.root, "a")
    made.raw["models"]["a"] |= entry
    (made.root / "params.yaml").write_text(yaml.safe_dump(made.raw))
    with pytest.raises(RegistryError, match=message):
        check_params(stages, made.params, made.root)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b'{"model": 1, "overrides": {}}'])
def test_other_inputs_than_those_it_ran_with_are_refused(workspace, content):
    made = workspace("a")
    stages = read_stages(made.root, "a")
    path = made.root / "artifacts" / "inputs" / "chase" / "a.json"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(RegistryError, match=r"chase@a ran with another value of artifacts/inputs/chase/a\.json"):
        check_params(stages, made.params, made.root)
    before = json.loads((made.root / "artifacts" / "inputs" / "align" / "a.json").read_text())
    write_json(path, before | {"code": {"sparsemm/models.py": "edited"}})
    with pytest.raises(RegistryError, match=r"chase@a ran with another value of artifacts/inputs/chase/a\.json"):
        check_params(stages, made.params, made.root)


def test_hashes_are_dvcs(tmp_path):
    folder = tmp_path / "data"
    (folder / "inner").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "inner/ü.txt", "inner-2"):
        (folder / name).write_text(name)
    environment = os.environ | {"DVC_SITE_CACHE_DIR": str(tmp_path / "site"), "DVC_NO_ANALYTICS": "1"}
    for command in (["init", "-q", "--no-scm"], ["add", "-q", "data"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=tmp_path, env=environment, check=True)
    written = yaml.safe_load((tmp_path / "data.dvc").read_text())["outs"][0]["md5"]
    assert md5_of(folder) == written and written.endswith(".dir")
    shutil.rmtree(folder)
    with pytest.raises(OSError):
        md5_of(folder)
