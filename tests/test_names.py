"""Names and folders as people have them: accents apart, bytes that are no UTF-8, blanks, ?, #, %, quotes, emoji."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from unicodedata import normalize

import pytest

from sparsemm import fetch
from sparsemm.datasets import download
from sparsemm.datasets.archives import Members
from sparsemm.datasets.records import read_records
from sparsemm.errors import FetchError, ModelError
from sparsemm.files import as_on_disk, plain_name
from sparsemm.models import content_revision, new_entry
from sparsemm.watch.arrival import stamp
from tests.datasets.pdfs import pdf, text
from tests.datasets.samples import params, png
from tests.repository import ROOT, copy_repository

COMPOSED, APART = (normalize(form, "Übersicht") for form in ("NFC", "NFD"))
FOREIGN = os.fsdecode(b"r\xe9sum\xe9")  # Latin-1
ODD = "what? #1 100% 'q\" [a]* $x & ü 😀"


def entry(image):
    return json.dumps({"image": image, "entries": [{"text": "hut", "box": [1, 2, 30, 12]}]}) + "\n"


def made(root, **given):
    download.run(params(**{"licence": "CC0"} | given), "mine", root)
    return read_records(root / "artifacts" / "datasets" / "mine.parquet")


@pytest.mark.parametrize(("disk", "said"), [(APART, COMPOSED), (COMPOSED, APART), (FOREIGN, FOREIGN)])
def test_an_image_is_found_whatever_form_its_name_has(tmp_path, disk, said):
    folder = tmp_path / "own" / disk
    folder.mkdir(parents=True)
    (folder / f"{disk}.png").write_bytes(png())
    (folder / f"{disk}.jsonl").write_text(entry(f"{said}.png"), encoding="utf-8")
    given = {"source": "folder", "path": "own", "format": "records_jsonl"}
    for split in (None, said) if said != FOREIGN else (None,):
        (record,) = made(tmp_path, **given | {"split": split})
        assert record.id == f"{plain_name(said)}-1"


def test_a_pdf_whose_name_is_no_utf_8_is_read(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / f"{FOREIGN}.pdf").write_bytes(pdf((text([(20, 150, b"hut"), (80, 150, b"hat")]), b"")))
    (record,) = made(tmp_path, source="pdf", path="own")
    assert [one.text for one in record.entries] == ["hut", "hat"]
    assert record.id.encode() and "udce9" in record.id


def test_names_that_differ_in_their_normal_form_only_are_refused(tmp_path):
    for name in (COMPOSED, APART):
        (tmp_path / f"{name}.txt").write_text("x")
    with pytest.raises(FetchError, match=f"two files that both read {COMPOSED}.txt"):
        fetch.open_local(".", tmp_path)


def test_a_folder_is_found_whatever_form_its_name_has(tmp_path):
    (tmp_path / APART / APART).mkdir(parents=True)
    (tmp_path / APART / APART / "a.txt").write_text("x")
    assert list(fetch.open_local(f"{COMPOSED}/{COMPOSED}", tmp_path).files) == ["a.txt"]
    assert as_on_disk(tmp_path / "none" / "a") == tmp_path / "none" / "a"


def test_a_checkpoint_has_one_revision_whatever_form_its_names_have(tmp_path):
    for folder, name in (("a", COMPOSED), ("b", APART)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("x")
    assert content_revision(tmp_path / "a") == content_revision(tmp_path / "b")
    (tmp_path / "a" / FOREIGN).write_text("x")
    assert content_revision(tmp_path / "a") != content_revision(tmp_path / "b") and stamp(tmp_path / "a")
    with pytest.raises(ModelError, match="params.yaml cannot hold"):
        new_entry(str(tmp_path / FOREIGN))


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_of_archives_are_found_too(tmp_path, kind):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_text("x")
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "in" / "all.zip", "w") as archive:
            archive.writestr(f"{APART}.txt", "one")
    else:
        with tarfile.open(tmp_path / "in" / "all.tar", "w") as packed:
            packed.add(tmp_path / "in" / "a", f"{APART}.txt")
            packed.add(tmp_path / "in" / "a", f"{FOREIGN}.txt")
    with Members(fetch.open_local("in", tmp_path)) as members:
        assert members.find(f"{COMPOSED}.txt") == f"{COMPOSED}.txt" and members.read(f"{COMPOSED}.txt")
        assert all(name.encode() for name in members.names())


PROGRAM = """#!{python}
import os, pathlib, sys
print(os.getcwd(), sys.argv[1:], file=open({log!r}, "a", encoding="utf-8"))
if "venv" in sys.argv:
    folder = pathlib.Path(sys.argv[-1], "bin")
    folder.mkdir(parents=True)
    (folder / "python").symlink_to({program!r})
"""


@pytest.mark.parametrize("name", [ODD, "a blank"])
def test_the_environment_is_made_in_any_folder(tmp_path, name):
    """With stand-ins for Python, pip and uv, which note their arguments."""
    folder, programs, log = tmp_path / name, tmp_path / "bin", tmp_path / "log.txt"
    folder.mkdir()
    programs.mkdir()
    for file in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / file, folder)
    for one in ("stand-in", "uv"):
        program = programs / one
        program.write_text(PROGRAM.format(python=sys.executable, log=str(log), program=str(programs / "stand-in")))
        program.chmod(0o755)
    (programs / "pip").symlink_to("/bin/true")
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    command = ["make", "setup", f"PYTHON={programs / 'stand-in'}"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / ".venv" / ".stamp").is_file() and sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [name, "bin", "log.txt"]
    )
    lines = log.read_text(encoding="utf-8").splitlines()
    assert all(line.startswith(f"{folder} [") for line in lines) and len(lines) == 4


def test_the_pipeline_runs_in_any_folder(tmp_path, repository_template, monkeypatch):
    from sparsemm.pipeline.plan import plan
    from sparsemm.pipeline.worktree import reproduce, worktree

    repository = copy_repository(repository_template, tmp_path / ODD).enter(monkeypatch)
    assert plan(repository.root).models.keys() == {"one", "two"}
    with worktree(repository.root, "one") as (folder, lock):
        reproduce(folder, ["align@one"], keep=(lock,))
    repository.dvc("repro", "align@one")
    assert repository.called()["align one"] == 1  # the second came from the cache that the worktree shares
    assert [p.name for p in tmp_path.iterdir()] == [ODD]


def test_questions_are_asked_in_any_folder(tmp_path):
    from sparsemm.evaluate.tasks.pages import load_local

    doc = {"id": "1", "image": png(), "prompt": "Read.", "answer": "hut", "kind": "read"}
    other = ODD.replace("?", "x").replace("[a]*", "a")  # what the name would mean as a pattern
    assert load_local("read", [doc] * 2, tmp_path / other, 8).ids
    assert load_local("read", [doc] * 3, tmp_path / ODD, 8).ids == ["1"] * 3
