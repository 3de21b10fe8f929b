"""What each stage depends on besides data: the code that it imports, what its model is, and what that overrides."""

from __future__ import annotations

import json

import pytest
import yaml

from sparsemm.inputs import FOLDER, OF_A_MODEL, OF_A_STUDY, contents, run, settings
from sparsemm.params import load_params, parse_params
from sparsemm.params.models import OVERRIDDEN
from tests.repository import ROOT

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
STAGES = {name: stage.get("do", stage) for name, stage in PIPELINE.items() if name != "inputs"}
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
PARAMS = load_params(ROOT / "params.yaml")


def edited(**entry):
    """The params with other values in the entry of one model, and what its stages then depend on besides code."""
    raw = yaml.safe_load(TEXT)
    raw["models"]["tiny-qwen2-vl"] |= entry
    return settings(parse_params(yaml.safe_dump(raw)))


def changed(**entry):
    before = settings(PARAMS)
    return {name for name, value in edited(**entry).items() if value != before[name]}


def files_of(stage):
    """Files of artifacts/inputs that the stage names, for every model and study."""
    (name,) = [one for one in STAGES[stage]["deps"] if one.startswith(f"{FOLDER.as_posix()}/")]
    name = name.removeprefix(f"{FOLDER.as_posix()}/")
    studies = (
        [one for one, options in getattr(PARAMS.studies, OF_A_STUDY[stage][0]) if options]
        if stage in OF_A_STUDY
        else [""]
    )
    for key in PARAMS.models:
        for study in studies:
            path = name.replace("${item.name}", study)
            for pattern in ("${key}", "${item.key}", "${item.model}"):
                path = path.replace(pattern, key)
            yield path


def test_every_stage_depends_on_its_file_and_every_file_is_of_a_stage():
    assert {path for stage in STAGES for path in files_of(stage)} == contents(PARAMS).keys()


def test_a_stage_depends_on_overrides_of_the_params_that_it_names():
    for stage in {*OF_A_MODEL, *OF_A_STUDY}:
        named = {key for key in STAGES[stage]["params"] if key.split(".")[0] in OVERRIDDEN}
        named -= {"chase.dataset", "evaluate.dataset"}  # the same for all models
        read = set((OF_A_MODEL.get(stage) or OF_A_STUDY[stage])[-1])
        read |= {f"studies.{OF_A_STUDY[stage][0]}.${{item.name}}"} if stage in OF_A_STUDY else set()
        lacking = {key for key in named if not any(f"{key}.".startswith(f"{one}.") for one in read)}
        unused = {one for one in read if not any(f"{key}.".startswith(f"{one}.") for key in named)}
        assert (lacking, unused) == (set(), set()), stage


def test_a_checkpoint_is_of_all_stages_but_those_that_read_what_others_wrote():
    without = {name for name in settings(PARAMS) if "tiny-qwen2-vl" in name} - changed(revision="2")
    derived = {f"study/{name}/tiny-qwen2-vl.json" for name in ("curve", "length", "cost")}
    assert without == derived | {"allocate/tiny-qwen2-vl.json"}


@pytest.mark.parametrize(
    ("entry", "stages"),
    [
        ({"note": "seen"}, set()),
        ({"device_map": None}, set()),
        ({"allocate": {"budgets": [24, 48]}}, {"allocate", "profile"}),
        ({"evaluate": {"samples": 8, "downsampled": True}}, {"evaluate"}),
        ({"tune": {"samples": 12}}, {"tune"}),
        ({"profile": {"repetitions": 3}}, {"profile"}),
        ({"studies": {"measured": {"rho": {"samples": 8}}}}, {"study/rho"}),
        ({"studies": {"compared": {"sources": {"samples": 8}}}}, {"study/sources"}),
        ({"profile": {"budget": 48}}, {"profile", "study/curve", "study/length", "study/cost"}),
    ],
)
def test_an_override_is_of_the_stages_that_read_it(entry, stages):
    assert changed(**entry) == {f"{stage}/tiny-qwen2-vl.json" for stage in stages}


def test_it_says_what_changed_and_writes_nothing_else(tmp_path, monkeypatch, capsys):
    run(PARAMS, tmp_path)
    assert capsys.readouterr().out == ""
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / FOLDER).rglob("*.json")}
    assert {path.relative_to(tmp_path / FOLDER).as_posix() for path in files} == contents(PARAMS).keys()
    former = tmp_path / FOLDER / "chase" / "gone.json"
    former.write_text("{}", encoding="utf-8")
    code = tmp_path / FOLDER / "report.json"
    before = json.loads(code.read_text(encoding="utf-8"))
    del before["code"]["sparsemm/tables.py"]
    code.write_text(json.dumps(before), encoding="utf-8")
    (tmp_path / FOLDER / "assemble.json").write_text("{", encoding="utf-8")  # of something that was no writer of ours
    raw = yaml.safe_load(TEXT)
    raw["models"]["tiny-qwen2-vl"] |= {"revision": "2", "tune": {"samples": 12}}
    run(parse_params(yaml.safe_dump(raw)), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == ["overrides.tune: tune/tiny-qwen2-vl", "sparsemm/tables.py: report"]
    assert lines[0].startswith("model.revision: align/tiny-qwen2-vl, chase/tiny-qwen2-vl, evaluate/tiny-qwen2-vl, ")
    assert not former.exists() and json.loads((tmp_path / FOLDER / "assemble.json").read_text(encoding="utf-8"))
    for path, when in files.items():
        assert path.stat().st_mtime_ns == when or path.stem in ("tiny-qwen2-vl", "report", "assemble"), path


def test_a_change_of_all_models_names_the_stage_alone(tmp_path, capsys):
    run(PARAMS, tmp_path)
    for path in (tmp_path / FOLDER / "chase").iterdir():
        content = json.loads(path.read_text(encoding="utf-8"))
        content["code"] |= {"sparsemm/gone.py": "0" * 16}
        path.write_text(json.dumps(content), encoding="utf-8")
    run(PARAMS, tmp_path)
    assert capsys.readouterr().out == "sparsemm/gone.py: chase\n"
