"""The units, as systemd itself reads them, with this environment's programs in the place of /srv/sparsemm."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository import ROOT

UNITS = sorted((ROOT / "deploy" / "systemd").glob("sparsemm-*"))


@pytest.fixture
def verify(tmp_path):
    """`verify(path, text)`: what systemd-analyze says of a unit."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    for unit in UNITS:  # those that another one names are read too
        (tmp_path / unit.name).write_text(here(unit.read_text(encoding="utf-8")))

    def run(name, text):
        path = tmp_path / name.replace("@.", "@control.")
        path.write_text(here(text))
        command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stderr

    return run


def here(text):
    """The unit with programs that exist."""
    return text.replace("/srv/sparsemm/.venv/bin", str(Path(sys.executable).parent))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_nothing_wrong(unit, verify):
    assert verify(unit.name, unit.read_text(encoding="utf-8")) == (0, "")


def test_it_would_find_a_mistake(verify):
    text = UNITS[0].with_name("sparsemm-registry.service").read_text(encoding="utf-8")
    assert verify("sparsemm-registry.service", text.replace("bin/sparsemm ", "bin/no-such-program "))[0] != 0
    assert "Unknown key" in verify("sparsemm-registry.service", text.replace("Restart=", "Restarts="))[1]


def test_units_keep_to_one_folder_and_hold_no_secret():
    assert len(UNITS) == 6
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8")
        if unit.suffix == ".service":
            assert "User=sparsemm" in text and "EnvironmentFile=/etc/sparsemm/environment" in text
        assert "PASSWORD" not in text and "AUTH_STRING" not in text
