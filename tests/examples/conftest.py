"""A real small checkpoint with two score tables, and a service that answers with them."""

from __future__ import annotations

import pytest
import yaml

from sparsemm.models import fingerprint
from tests.examples.services import MODEL, ROOT, Gate, make_table, served, until


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny):
    """params.yaml with absolute paths, and two score tables."""
    folder = tmp_path_factory.mktemp("service")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["models"][MODEL]["checkpoint"] = str(ROOT / params["models"][MODEL]["checkpoint"])
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    for seed in (1, 2):
        make_table(folder / f"{seed}.safetensors", fingerprint(tiny(MODEL)[0].config), seed)
    make_table(folder / "foreign.safetensors", "0" * 64, 3)
    return folder


@pytest.fixture(scope="module")
def service(folder):
    with served(folder, max_upload_bytes=200_000, max_image_pixels=40_000, max_question_characters=100) as service:
        yield service


@pytest.fixture
def gate(service):
    until(lambda: service.state.in_flight == 0)
    gate = Gate(service)
    yield gate
    gate.hook.remove()
    gate.let_all()
    until(lambda: service.state.in_flight == 0)
