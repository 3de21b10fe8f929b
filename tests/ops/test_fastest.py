"""What was measured of decode backends: kept, found by the nearest shape, and never used when it is damaged."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from sparsemm.ops import build, fastest

CPU = torch.device("cpu")


def shape(segments, rows, backend, dtype="float16", head_dim=64, group=4):
    values = (dtype, head_dim, group, segments, rows, backend)
    return dict(zip(fastest.FIELDS, values, strict=True))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "library_folder", lambda: tmp_path / "cache")
    fastest.measured.cache_clear()
    fastest.backend.cache_clear()
    yield tmp_path / "cache"
    fastest.measured.cache_clear()
    fastest.backend.cache_clear()


def test_the_nearest_shape_of_the_same_kind_answers(folder):
    assert fastest.backend(CPU, torch.float16, 64, 4, 8, 256) is None
    sizes = {"a": (8, 256), "b": (64, 256), "c": (8, 8192)}
    path = fastest.keep(CPU, [shape(*size, name) for name, size in sizes.items()] + [shape(8, 256, "d", group=1)])
    assert path.parent == folder and path == fastest.path_of(fastest.processor())
    nearest = {(8, 256): "a", (8, 300): "a", (16, 200): "a", (200, 256): "b", (8, 5000): "c", (1, 1): "a", (0, 0): "a"}
    for (segments, rows), name in nearest.items():
        assert fastest.backend(CPU, torch.float16, 64, 4, segments, rows) == name
    assert fastest.backend(CPU, torch.float16, 64, 1, 64, 8192) == "d"
    for other in ((torch.float32, 64, 4), (torch.float16, 128, 4), (torch.float16, 64, 2)):
        assert fastest.backend(CPU, *other, 8, 256) is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"torch": "x", "fastest": [{}]}', '{"torch": "x", "fastest": 3}', "\udcff"]
    + [json.dumps({"torch": torch.__version__, "fastest": [one]}) for one in (shape(0, 1, "a"), shape(1, "x", "a"))],
)
def test_a_damaged_file_is_said_once_and_not_used(folder, caplog, content):
    fastest.keep(CPU, [shape(8, 256, "a")])
    fastest.path_of(fastest.processor()).write_text(content, errors="surrogateescape")
    fastest.measured.cache_clear()
    with caplog.at_level(logging.WARNING):
        for rows in (1, 100):
            assert fastest.backend(CPU, torch.float16, 64, 4, 8, rows) is None
    assert len(caplog.records) == 1 and "is not used" in caplog.text


def test_another_torch_has_other_kernels(folder, caplog, monkeypatch):
    fastest.keep(CPU, [shape(8, 256, "a")])
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert fastest.measured(CPU) == [] and "measure again" in caplog.text


def test_names_of_devices_do_not_meet():
    assert fastest.path_of("NVIDIA H100 80GB") != fastest.path_of("NVIDIA H100-80GB")
    assert fastest.path_of("../../etc").parent == build.library_folder()
