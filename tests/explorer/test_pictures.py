"""Pictures of a page: which heads they are of, and that they show where heads look and what is kept."""

from __future__ import annotations

import base64
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from sparsemm.explorer.pictures import EACH, attention, method_pictures, middle_token, picture, unscored, views
from tests.explorer import pages as crafted

TOKEN = 3  # the first of the second word


def seen(page, values, kept=None):
    """Pixels of the page under these opacities."""
    return np.asarray(picture(page, TOKEN, values, kept)).astype(int)


def cell(pixels, page, number):
    """Mean colour of a visual token in a picture of the page."""
    scale = pixels.shape[1] / page.record.image.width
    x0, y0, x1, y1 = (scale * page.rectangles[number]).round().astype(int)
    return pixels[y0:y1, x0:x1].reshape(-1, 3).mean(0)


def test_views_are_of_the_best_heads_and_of_others_at_a_word_in_the_middle():
    page, table = crafted.reading(), crafted.table()
    token = middle_token(page)
    assert token == TOKEN and page.tokens[token].entry == 1 and page.tokens[token - 1].entry != 1
    result = views(page, table)
    assert result["word"] == "far" and len(result["visual"]) == len(result["others"]) == EACH
    on_page, on_thumbnail = page.sums[0, 0, token]
    assert result["visual"][0]["text"] == (
        f"layer 0, head 0 (rank 1): 50.0% of the score, attention: {on_page:.0%} page, {on_thumbnail:.0%} thumbnail"
    )
    assert result["others"][-1]["text"].startswith("layer 4, head 3 (rank 20)")
    assert np.allclose(attention(page, token, (0, 0, 0.5)), (page.levels[0, 0, token] / 255) ** 2)


def test_there_are_no_pictures_where_nothing_was_read():
    page = dataclasses.replace(crafted.reading(), tokens=[])
    assert views(page, crafted.table()) is None and method_pictures(page, crafted.table()) == []


def test_heads_without_a_score_come_from_everywhere():
    ranked = [(0, 0, 0.6), (3, 1, 0.4), *((layer, 0, 0.0) for layer in range(1, 6))]
    assert unscored(ranked, 3) == [(1, 0, 0.0), (3, 0, 0.0), (5, 0, 0.0)]
    assert unscored(ranked[:4], 3) == ranked[1:4]  # too few: the last ones


@pytest.mark.parametrize(("number", "most", "least"), [(12, 0, 2), (27, 1, 0)])
def test_attention_is_orange_on_the_page_and_green_on_its_thumbnail(number, most, least):
    page = crafted.reading()
    values = np.zeros(28)
    values[number] = 1.0
    strong = cell(seen(page, values), page, number)
    weak = cell(seen(page, values / 10), page, number)
    assert strong[most] > strong[least] + 50 and weak[most] - weak[least] < strong[most] - strong[least]


def test_what_is_not_kept_fades():
    page = crafted.reading()
    kept = np.ones(28, dtype=bool)
    kept[0] = False  # where the first word stands
    whole, faded = (seen(page, np.zeros(28), one) for one in (None, kept))
    assert cell(faded, page, 0).mean() > cell(whole, page, 0).mean() + 5
    assert (cell(faded, page, 1) == cell(whole, page, 1)).all()


def test_the_method_is_told_in_pictures_of_both_methods_at_one_budget():
    page, table = crafted.reading(), crafted.table()
    first, ours, other = method_pictures(page, table)
    assert "layer 0, head 0" in first["text"] and "far" in first["text"]
    counts = {method: int(page.kept[method, 16][0, 0][page.positions].sum()) for method in ("sparsemm", "snapkv")}
    assert ours["text"].startswith(f"sparsemm, B = 16: keeps {counts['sparsemm']} of 28")
    assert other["text"].startswith(f"snapkv, B = 16: keeps {counts['snapkv']} of 28")
    assert len(method_pictures(dataclasses.replace(page, kept={}), table)) == 1
    kind, text = first["image"].split(",")
    assert kind == "data:image/jpeg;base64" and Image.open(io.BytesIO(base64.b64decode(text))).size == (360, 240)


def test_a_large_page_is_made_smaller():
    page = crafted.reading(size=(1600, 800))
    assert picture(page, TOKEN, np.zeros(28)).size == (320, 160)
