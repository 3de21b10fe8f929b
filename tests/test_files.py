"""Half-done work belongs to the settings and to the code it was begun with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import sparsemm
from sparsemm.files import identity

PACKAGE = Path(sparsemm.__file__).parent


def test_work_has_the_name_of_its_settings():
    assert identity([1, {"a": None}]) == identity([1, {"a": None}]) != identity([1, {"a": 0}])


def test_work_that_other_code_began_is_not_gone_on_with(tmp_path):
    copy = tmp_path / "sparsemm"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))

    def named():
        code = "from sparsemm.files import identity; print(identity([1]))"
        return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True).stdout

    before = named()
    assert named() == before
    with open(copy / "scores.py", "a", encoding="utf-8") as handle:
        handle.write("# edited\n")
    assert named() != before
