"""A few damaged files of every kind; `fuzz.py` reads thousands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datasets.fuzz import fuzz, real_files
from tests.datasets.pdfs import pdf, text
from tests.datasets.test_images import GREYS, bmp
from tests.datasets.test_pdf import PAGE, REAL
from tests.datasets.test_seen import HIDDEN_LAYER, UNSEEN, annotation, scan

FORMATS = ("png", "jpg", "gif", "tiff", "bmp", "webp", "tga", "dds", "sgi", "jp2", "ico", "ppm", "pcx", "icns")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Small files of every format that Pillow writes, and PDF files with what the reader looks for."""
    folder = tmp_path_factory.mktemp("files")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    for ending in FORMATS:
        Image.fromarray(pixels).save(folder / f"a.{ending}")
    for number, data in enumerate(GREYS.values()):
        (folder / f"grey{number}.tif").write_bytes(data)
    (folder / "alpha.bmp").write_bytes(bmp(0))
    content, scanned = scan([(20, 100, b"scanned")])
    layered = UNSEEN["hidden layer"][0] + PAGE
    noted = annotation(b"FreeText", text([(5, 10, b"Filled in")]))
    for name, data in {
        "plain": pdf((PAGE, b""), (PAGE, b"/Rotate 90")),
        "scan": pdf((content + text([(20, 100, b"scanned")]).replace(b"BT", b"BT 3 Tr"), b""), **scanned),
        "layer": pdf((layered, b""), **HIDDEN_LAYER),
        "note": pdf((PAGE, b"/Annots [100 0 R]"), objects=noted),
    }.items():
        (folder / f"{name}.pdf").write_bytes(data)
    return folder


@pytest.mark.parametrize("kind", ["PDF files", "images"])
def test_no_damage_does_more_than_cost_its_file(folder, kind):
    pdfs, images = real_files([folder])
    paths = [*pdfs, *REAL[:2]] if kind == "PDF files" else images
    problems, totals = fuzz(paths, 60 if kind == "PDF files" else 120)
    assert not problems
    assert totals["kept"] > 0 and totals["bad"] > 0  # some damage is seen, and some is not
    assert totals["peak"] < 1500  # MiB


def test_what_goes_wrong_is_reported(tmp_path):
    problems, _ = fuzz([tmp_path / "none.pdf"], 2)
    assert sorted(problems) == [0, 1] and "FileNotFoundError" in problems[0]
