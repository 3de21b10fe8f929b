"""Figures are pictures of their numbers, the same bytes for the same numbers."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsemm.report import figures

SPEC = importlib.util.spec_from_file_location("report_rows", Path(__file__).with_name("test_results.py"))
rows = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(rows)


def result(share=0.5):
    evaluation = [rows.row("full", "", 0.9)]
    evaluation += [rows.row(m, b, v, (-0.2, 0.1)) for m in ("sparsemm", "snapkv") for b, v in (("8", 0.3), ("16", 0.6))]
    one = {"method": "sparsemm", "prompt_length": "128", "decode_ms_per_token": "2.0", "kept_bytes": "2048"}
    return rows.results(evaluation, [one], share)


def pictures(share):
    page, box = Image.new("RGB", (30, 20), "white"), (2, 2, 12, 8)
    view = ("head", np.array([[0.0, 0.0, 15.0, 20.0], [15.0, 0.0, 30.0, 20.0]]), np.array([share, 1 - share]))
    return {
        "heat": figures.heat_map(result(share)),
        "curve": figures.share_curve([result(share), result(0.1)]),
        "accuracy": figures.accuracy(result(), "read"),
        "latency": figures.latency(result()),
        "overlay": figures.overlay(page, box, [view]),
    }


@pytest.mark.parametrize("name", ["heat", "curve", "accuracy", "latency", "overlay"])
def test_pictures_are_not_blank_and_do_not_change(name):
    one, again = pictures(0.3)[name], pictures(0.3)[name]
    assert one == again
    pixels = np.asarray(Image.open(io.BytesIO(one)).convert("L"))
    assert pixels.shape[0] > 100 and pixels.std() > 5


@pytest.mark.parametrize("name", ["heat", "curve", "overlay"])
def test_other_numbers_give_another_picture(name):
    assert pictures(0.3)[name] != pictures(0.8)[name]
