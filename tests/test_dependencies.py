"""Which files a result depends on, and what half-done work is known by."""

from __future__ import annotations

import ast
import shutil

import pytest

from sparsemm import dependencies as module
from sparsemm.dependencies import ALSO, LEFT_OUT, NOT_FOLLOWED, dependencies, identity, imports, without_comments
from sparsemm.inputs import contents
from sparsemm.params import load_params
from tests.repository import ROOT


def test_every_exception_is_one():
    """What is left out, or imported by name, still exists and would be reached."""
    for name in {*LEFT_OUT, *ALSO, *(name for edge in NOT_FOLLOWED for name in edge)}:
        assert module._path(name), name
    assert all(imported in set(imports(name)) for name, imported in NOT_FOLLOWED)
    patterns = {pattern for patterns in ALSO.values() for pattern in patterns} - {"sparsemm/csrc/*"}  # of a wheel
    assert all(list(ROOT.glob(pattern)) for pattern in patterns)


def test_what_is_imported_or_read_by_name_is_listed():
    """Nobody imports by a name that is put together, or reads files beside a module, without being in the list."""
    files = {file for one in contents(load_params(ROOT / "params.yaml")).values() for file in one["code"]}
    for name in sorted(file for file in files if file.endswith(".py")):
        text = (ROOT / name).read_text(encoding="utf-8")
        called = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
        if "import_module(" in text or "__file__" in called:
            assert module._module(ROOT / name) in {*ALSO}, name


def test_half_done_work_has_the_name_of_its_settings():
    align = "sparsemm.align.stage"
    assert identity([1, {"a": None}], align) == identity([1, {"a": None}], align) != identity([1, {"a": 0}], align)


@pytest.fixture
def names(tmp_path, monkeypatch):
    """The names of half-done work in a copy of the repository, which may be edited."""
    for name in ("sparsemm", "csrc"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(module, "ROOT", tmp_path)
    caches = (module.dependencies, module._imports, module._tree, module._digest)

    def read(edited=None, old="", new=""):
        if edited:
            text = (tmp_path / edited).read_text(encoding="utf-8")
            (tmp_path / edited).write_text(text.replace(old, new, 1) if old else text + new, encoding="utf-8")
        for one in caches:
            one.cache_clear()
        return [
            identity([1], f"sparsemm.{name}") for name in ("align.stage", "chase.sharded", "studies.common.experiment")
        ]

    yield read
    monkeypatch.undo()
    for one in caches:
        one.cache_clear()


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


COMMENTED = """# A comment.
import os  # why


class A:
    'What it is: ü.'

    # Another.
    text = '''# kept

'''  # cut

    def f(self): "what it does"; return 1  # twice


async def g():
    '''What.

    Long.
    '''
    return "no docstring"
"""
PLAIN = """import os
class A:
    text = '''# kept

'''
    def f(self): ; return 1
async def g():
    return "no docstring\"
"""


def test_comments_docstrings_and_empty_lines_are_cut():
    assert without_comments(COMMENTED) == PLAIN
    assert without_comments("") == ""
    assert without_comments("x = 1") == "x = 1"


def statements(source):
    """The syntax tree without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
    return ast.dump(tree)


def test_nothing_but_comments_and_docstrings_is_cut():
    """Of every fourth file: a class or function that holds a docstring alone gets a statement first."""
    for path in sorted((ROOT / "sparsemm").rglob("*.py"))[::4]:
        lines = path.read_text(encoding="utf-8").split("\n")
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and len(node.body) == 1 and ast.get_docstring(node):
                lines[node.body[0].end_lineno - 1] += "; pass"
        source = "\n".join(lines)
        assert statements(without_comments(source).replace(" ; pass", " pass")) == statements(source), path
