"""What dvc.yaml declares of the code is what the stages import, and half-done work is known by the same."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from sparsemm import dependencies as module
from sparsemm.dependencies import ALSO, LEFT_OUT, NOT_FOLLOWED, dependencies, identity, imports
from sparsemm.studies import in_group
from tests.repository import ROOT

ALONE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
CHASE = ("sparsemm.chase.stage", "sparsemm.chase.workers")
MODULES = {  # stage of dvc.yaml -> the modules that its command runs
    "download": ("sparsemm.datasets.download",),
    "assemble": ("sparsemm.assemble.stage",),
    "align": ("sparsemm.align.stage",),
    "align-also": ("sparsemm.align.stage",),
    "chase": CHASE,
    "chase-also": CHASE,
    "allocate": ("sparsemm.allocate",),
    "evaluate": ("sparsemm.evaluate.stage",),
    "profile": ("sparsemm.profiling.stage",),
    "profile-shape": ("sparsemm.profiling.stage",),
    "tune": ("sparsemm.tune.stage",),
    "explore": ("sparsemm.explorer.stage",),
    "report": ("sparsemm.report.stage",),
}


def studies(group):
    """What each study of a group runs."""
    bench = () if group == "derived" else ("sparsemm.studies.common.experiment",)
    return {name: ("sparsemm.studies.common.stage", *bench, f"sparsemm.studies.{name}") for name in in_group(group)}


def commands():
    """Each stage of dvc.yaml: the modules of its command, or of each of its studies, and the code that it declares."""
    for stage, value in STAGES.items():
        value = value.get("do", value)
        group = value.get("matrix", {}).get("name", "").removeprefix("${studies.").removesuffix("}")
        declared = {dep for dep in value["deps"] if dep.startswith(("sparsemm", "csrc"))}
        yield pytest.param(studies(group) if group else {stage: MODULES[stage]}, declared, id=stage)


def is_declared(file, declared):
    return any(file == one or file.startswith(f"{one}/") for one in declared)


@pytest.mark.parametrize(("modules", "declared"), list(commands()))
def test_a_stage_declares_what_it_imports(modules, declared):
    unused = set(declared)
    for name, one in modules.items():
        own = {dep.replace("${item.name}", name): dep for dep in declared}
        files = dependencies(*one)
        assert not [file for file in files if not is_declared(file, own)], f"dvc.yaml: {name} lacks these"
        unused -= {dep for path, dep in own.items() if any(is_declared(file, [path]) for file in files)}
        assert all((ROOT / path).exists() for path in own)
    assert not unused, "dvc.yaml has these for nothing"


def test_every_exception_is_one():
    """What is left out, or imported by name, still exists and would be reached."""
    for name in {*LEFT_OUT, *ALSO, *(name for edge in NOT_FOLLOWED for name in edge)}:
        assert module._path(name), name
    assert all(imported in set(imports(name)) for name, imported in NOT_FOLLOWED)
    patterns = {pattern for patterns in ALSO.values() for pattern in patterns} - {"sparsemm/csrc/*"}  # of a wheel
    assert all(list(ROOT.glob(pattern)) for pattern in patterns)


def test_what_is_imported_or_read_by_name_is_listed():
    """Nobody imports by a name that is put together, or reads files beside a module, without being in the list."""
    reached = {file for stage in commands() for one in stage.values[0].values() for file in dependencies(*one)}
    for name in sorted(file for file in reached if file.endswith(".py")):
        text = (ROOT / name).read_text(encoding="utf-8")
        called = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
        if "import_module(" in text or "__file__" in called:
            assert module._module(ROOT / name) in {*ALSO}, name


def test_half_done_work_has_the_name_of_its_settings():
    align = "sparsemm.align.stage"
    assert identity([1, {"a": None}], align) == identity([1, {"a": None}], align) != identity([1, {"a": 0}], align)


@pytest.fixture
def names(tmp_path):
    """The names of half-done work in a copy of the repository, which may be edited."""
    for name in ("sparsemm", "csrc"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    modules = ("align.stage", "chase.sharded", "studies.common.experiment")
    code = f"from sparsemm.dependencies import identity\nfor m in {modules}:"
    code += " print(identity([1], 'sparsemm.' + m))"

    def read(edited=None, old="", new=""):
        if edited:
            text = (tmp_path / edited).read_text(encoding="utf-8")
            (tmp_path / edited).write_text(text.replace(old, new, 1) if old else text + new, encoding="utf-8")
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ALONE, capture_output=True, check=True)
        return done.stdout.split()

    return read


def changed(before, after):
    return [one != other for one, other in zip(before, after, strict=True)]


def test_half_done_work_is_gone_on_with_where_nothing_it_depends_on_changed(names):
    """Per edit: whether an alignment, a chase and a study begin anew."""
    before = names()
    assert names() == before
    for edited, old, new, anew in (
        ("sparsemm/models.py", "", "# a comment\n", [False, False, False]),
        ("sparsemm/scores.py", '"""', '"""Other words: ', [False, False, False]),
        ("sparsemm/report/html.py", "", "X = 1\n", [False, False, False]),
        ("sparsemm/budgets.py", "", "X = 1\n", [False, False, True]),
        ("csrc/argmax_rows.cpp", "", "\n", [False, True, True]),
        ("sparsemm/align/words.py", "", "X = 1\n", [True, False, False]),
        ("sparsemm/models.py", "", "X = 1\n", [True, True, True]),
    ):
        after = names(edited, old, new)
        assert changed(before, after) == anew, edited
        before = after


def test_a_module_that_is_no_more_is_said():
    with pytest.raises(ModuleNotFoundError, match=r"sparsemm\.gone"):
        dependencies("sparsemm.gone")
