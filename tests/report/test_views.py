"""Visual heads and others over one page: which ones, and that a picture shows where they look."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from sparsemm.report.views import EACH, View, Views, head_views, middle_token, picture, unscored

WHOLE = np.array([[0.0, 0.0, 20.0, 20.0]])


def over_a_page(*views):
    return Views(Image.new("RGB", (20, 20), "white"), "word", (1, 1, 4, 4), list(views), list(views))


def view(attention, coarse=False):
    return View("head", "looks", WHOLE, np.array([attention]), np.array([coarse]))


def middle(views, one):
    return np.asarray(picture(views, one))[200, 200].astype(int)


def test_views_are_the_best_heads_and_others_at_a_word_in_the_middle(crafted):
    page, table = crafted.looking(), crafted.table()
    token = middle_token(page)
    assert page.tokens[token].entry == 1 and page.tokens[token - 1].entry != 1
    views = head_views([page], table)
    assert (views.word, views.box) == ("far", (32, 22, 56, 36))
    assert len(views.visual) == len(views.others) == EACH and views.visual[0].title == "layer 0, head 0 (rank 1)"
    on_page, on_thumbnail = page.sums[0, 0, token]
    assert views.visual[0].said == (f"50.0% of the score,\nattention: {on_page:.0%} page, {on_thumbnail:.0%} thumbnail")
    assert np.allclose(views.visual[0].attention, (page.levels[0, 0, token] / 255) ** 2)
    assert views.others[-1].title == "layer 4, head 3 (rank 20)"


def test_there_are_no_views_where_nothing_was_read_or_looked_at(crafted):
    assert head_views("too large", crafted.table()) is None
    assert head_views([dataclasses.replace(crafted.looking(), tokens=[])], crafted.table()) is None


def test_heads_without_a_score_come_from_everywhere():
    ranked = [(0, 0, 0.6), (3, 1, 0.4), *((layer, 0, 0.0) for layer in range(1, 6))]
    assert unscored(ranked, 3) == [(1, 0, 0.0), (3, 0, 0.0), (5, 0, 0.0)]
    assert unscored(ranked[:4], 3) == ranked[1:4]  # too few: the last ones


def test_heads_share_one_scale():
    weak, strong = view(0.1), view(0.9)
    alone, beside = (middle(over_a_page(*views), weak) for views in ([weak], [weak, strong]))
    assert beside.mean() > alone.mean() + 10


@pytest.mark.parametrize(("coarse", "most", "least"), [(False, 0, 2), (True, 1, 0)])
def test_a_thumbnail_has_its_own_colour(coarse, most, least):
    one = view(0.9, coarse)
    pixel = middle(over_a_page(one), one)
    assert pixel[most] > pixel[least] + 50  # orange, green


def test_a_large_page_is_made_smaller():
    one = view(0.5)
    large = dataclasses.replace(over_a_page(one), image=Image.new("RGB", (1600, 800), "white"))
    assert picture(large, one).size == (320, 160)
