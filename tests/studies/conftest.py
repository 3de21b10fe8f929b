"""A trained small model, a few pages, and a score table of its shape: what studies begin from."""

from __future__ import annotations

import csv

import pytest

from tests.studies.crafted import KEY, begin


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """`begin` in a folder of the session; nothing has been studied."""
    return begin(tmp_path_factory.mktemp("studies"))


@pytest.fixture
def rows():
    """Rows of a study that was made."""

    def read(root, name):
        with open(root / "artifacts" / "studies" / name / f"{KEY}.csv", newline="", encoding="utf-8") as handle:
            return list(csv.DictReader(handle))

    return read
