"""Figures are pictures of their numbers, the same bytes for the same numbers."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from sparsemm.report import figures


def result(crafted, share=0.5):
    evaluation = [crafted.row("full", "", 0.9)]
    for method in ("sparsemm", "snapkv"):
        evaluation += [crafted.row(method, b, share * v, (-0.2, 0.1)) for b, v in (("8", 0.3), ("16", 0.6))]
    return crafted.results(evaluation, [crafted.timing(kept=2048, ms=share)], share)


def pictures(crafted, share):
    page, box = Image.new("RGB", (30, 20), "white"), (2, 2, 12, 8)
    rectangles = np.array([[0.0, 0.0, 15.0, 20.0], [15.0, 0.0, 30.0, 20.0]])
    view = figures.View("head", rectangles, np.array([share, 1 - share]), np.array([False, False]))
    return {
        "heat": figures.heat_map(result(crafted, share)),
        "curve": figures.share_curve([result(crafted, share), result(crafted, 0.1)]),
        "accuracy": figures.accuracy(result(crafted, share), "read"),
        "overlay": figures.overlay(page, box, [view]),
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


def test_heads_share_one_scale(crafted):
    """The same weak head is drawn fainter beside a strong one than alone."""
    page, box = Image.new("RGB", (20, 20), "white"), (1, 1, 2, 2)
    where = np.array([[0.0, 0.0, 20.0, 20.0]])
    weak, strong = (figures.View("a", where, np.array([a]), np.array([False])) for a in (0.1, 0.9))
    means = []
    for views in ([weak, weak], [weak, strong]):
        pixels = np.asarray(Image.open(io.BytesIO(figures.overlay(page, box, views))).convert("L"))
        means.append(pixels[:, : pixels.shape[1] // 2].mean())
    assert means[1] > means[0] + 10


def test_one_budget_is_drawn_in_the_middle(crafted):
    rows = [crafted.row("sparsemm", "32", 0.5)]
    pixels = np.asarray(Image.open(io.BytesIO(figures.accuracy(crafted.results(rows), "read"))).convert("RGB")).astype(
        int
    )
    orange = (np.abs(pixels - (0xD5, 0x5E, 0x00)).sum(axis=2) < 30)[: pixels.shape[0] * 3 // 4]
    at = np.flatnonzero(orange.any(axis=0))
    assert at.size and 0.3 < at.mean() / pixels.shape[1] < 0.7


def test_a_thumbnail_has_its_own_colour(crafted):
    page, where = Image.new("RGB", (20, 20), "white"), np.array([[0.0, 0.0, 20.0, 20.0]])
    views = [figures.View("a", where, np.array([0.9]), np.array([coarse])) for coarse in (False, True)]
    pixels = np.asarray(Image.open(io.BytesIO(figures.overlay(page, (1, 1, 2, 2), views))).convert("RGB")).astype(int)
    middle, width = pixels.shape[0] * 2 // 3, pixels.shape[1]
    grid, thumbnail = pixels[middle, width // 4], pixels[middle, width * 3 // 4]
    assert grid[0] > grid[1] + 50 and thumbnail[1] > thumbnail[0] + 50  # orange, green


def test_every_figure_of_a_model_is_drawn(crafted):
    names = [name for name, _ in figures.drawn(result(crafted), [crafted.looking()])]
    assert names == ["heads-m", "accuracy-m-read", "latency-m", "looking-m"]
    assert [name for name, _ in figures.drawn(crafted.results(), "too large")] == ["heads-m"]


def test_views_are_the_best_heads_and_the_worst_at_a_word_in_the_middle(crafted):
    page, table = crafted.looking(), crafted.table()
    token = figures.middle_token(page)
    assert page.tokens[token].entry == 1 and page.tokens[token - 1].entry != 1
    views = figures.head_views(page, token, table)
    assert [view.title.split(":")[0] for view in views] == ["#1", "#2", "#3", "last"]
    on_page, on_thumbnail = page.sums[0, 0, token]
    assert views[0].title.endswith(f"attention: {on_page:.0%} page, {on_thumbnail:.0%} thumbnail")
    assert np.allclose(views[0].attention, (page.levels[0, 0, token] / 255) ** 2)
    unread = type(page)(**(vars(page) | {"tokens": []}))
    assert figures.middle_token(unread) is None
