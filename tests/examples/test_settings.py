"""Settings of the example service."""

from __future__ import annotations

import pytest

from examples.service.settings import Settings
from sparsemm.errors import ParamsError
from tests.examples.services import MODEL


def test_settings_come_from_the_environment_and_are_checked():
    environment = {"SPARSEMM_SERVICE_MODEL": MODEL, "SPARSEMM_SERVICE_PORT": "9000", "PATH": "/bin"}
    settings = Settings.from_environment(environment)
    assert (settings.host, settings.port) == ("127.0.0.1", 9000)
    assert settings.scores == f"models:/visual-heads.{MODEL}@champion"
    bad = {"SPARSEMM_SERVICE_PORT": "canary-1", "SPARSEMM_SERVICE_TOKEN": "canary-2"}
    with pytest.raises(ParamsError) as caught:
        Settings.from_environment(bad)
    for name in ("SPARSEMM_SERVICE_MODEL", "SPARSEMM_SERVICE_PORT", "SPARSEMM_SERVICE_TOKEN"):
        assert name in str(caught.value)
    assert "canary" not in str(caught.value)
