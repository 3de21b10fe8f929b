"""Figures are pictures of their numbers, the same bytes for the same numbers."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from sparsemm.report import figures
from sparsemm.report.views import View, Views


def result(crafted, share=0.5):
    evaluation = [crafted.row("full", "", 0.9)]
    for method in ("sparsemm", "snapkv"):
        evaluation += [crafted.row(method, b, share * v, (-0.2, 0.1)) for b, v in (("8", 0.3), ("16", 0.6))]
    return crafted.results(evaluation, [crafted.timing(kept=2048, ms=share)], share)


def pictures(crafted, share):
    rectangles = np.array([[0.0, 0.0, 15.0, 20.0], [15.0, 0.0, 30.0, 20.0]])
    view = View("head", "looks", rectangles, np.array([share, 1 - share]), np.array([False, False]))
    page = Views(Image.new("RGB", (30, 20), "white"), "word", (2, 2, 12, 8), [view], [view])
    return {
        "heat": figures.heat_map(result(crafted, share)),
        "curve": figures.share_curve([result(crafted, share), result(crafted, 0.1)]),
        "accuracy": figures.accuracy(result(crafted, share), "read"),
        "overlay": figures.overlay(page),
    }


def test_pictures_are_not_blank_and_follow_their_numbers(crafted):
    one, again, other = pictures(crafted, 0.3), pictures(crafted, 0.3), pictures(crafted, 0.8)
    for name, png in one.items():
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
        assert pixels.shape[0] > 100 and pixels.std() > 5, name
        assert png == again[name] and png != other[name], name
        assert b"Software" not in png and b"tIME" not in png, name


def test_a_task_that_was_not_run_with_budgets_still_draws(crafted):
    only_full = crafted.results([crafted.row("full", "", 0.9)])
    assert Image.open(io.BytesIO(figures.accuracy(only_full, "read"))).size[0] > 100


def test_pictures_are_as_wide_as_a_phone_can_show(crafted):
    """Text of 10 points in a picture scaled to 360 pixels is still 8 pixels high."""
    for name, png in pictures(crafted, 0.3).items():
        width = Image.open(io.BytesIO(png)).width
        assert 10 / 72 * 150 * 360 / width > 8, name


def test_one_budget_is_drawn_in_the_middle(crafted):
    rows = [crafted.row("sparsemm", "32", 0.5)]
    pixels = np.asarray(Image.open(io.BytesIO(figures.accuracy(crafted.results(rows), "read"))).convert("RGB")).astype(
        int
    )
    orange = (np.abs(pixels - (0xD5, 0x5E, 0x00)).sum(axis=2) < 30)[: pixels.shape[0] * 3 // 4]
    at = np.flatnonzero(orange.any(axis=0))
    assert at.size and 0.3 < at.mean() / pixels.shape[1] < 0.7


def test_every_figure_of_a_model_is_drawn(crafted):
    names = [name for name, _ in figures.drawn(result(crafted), [crafted.looking()])]
    assert names == ["heads-m", "accuracy-m-read", "latency-m", "looking-m"]
    assert [name for name, _ in figures.drawn(crafted.results(), "too large")] == ["heads-m"]
