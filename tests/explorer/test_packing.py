"""What is packed comes out again; what does not fit is left out head by head."""

from __future__ import annotations

import base64
import gzip
import io
import json

import numpy as np
import pytest
from PIL import Image

from sparsemm.explorer.packing import pack, shown_heads
from tests.explorer import pages as crafted


def unpacked(text, dtype=np.uint8):
    return np.frombuffer(gzip.decompress(base64.b64decode(text)), dtype=dtype)


def test_shown_heads_are_the_best_and_a_sample():
    table = crafted.table()
    every = shown_heads(table, 20)
    assert len({tuple(head) for head in every.tolist()}) == 20 and every[0].tolist() == [0, 0]
    some = shown_heads(table, 8)
    assert some[:6].tolist() == every[:6].tolist() and some[-1].tolist() == every[-1].tolist()
    assert len({tuple(head) for head in some.tolist()}) == 8
    assert shown_heads(table, 1).tolist() == [[0, 0]] and shown_heads(table, 0).shape == (0, 2)


@pytest.mark.parametrize("coarse", [True, False])
def test_a_page_comes_out_as_it_went_in(coarse):
    page, table = crafted.reading(coarse=coarse), crafted.table()
    packed = json.loads(json.dumps(pack(page, table, 10**6), allow_nan=False))
    layer, head = np.array(packed["heads"]).T
    tokens, cells, choices = len(packed["tokens"]), len(packed["cells"]), len(packed["kept"])
    levels = unpacked(packed["levels"]).reshape(20, tokens, cells)
    assert np.array_equal(levels, page.levels[layer, head])
    assert np.array_equal(unpacked(packed["peak"], "<i2").reshape(20, tokens), page.peak[layer, head])
    sums = unpacked(packed["sums"]).reshape(20, tokens, 2) / 255
    assert np.abs(sums - page.sums[layer, head]).max() < 0.003
    bits = np.unpackbits(unpacked(packed["bits"]).reshape(20, choices, -1), axis=-1)[..., : page.prompt]
    for number, one in enumerate(packed["kept"]):
        kept = page.kept[one["method"], one["budget"]]
        assert np.array_equal(bits[:, number].astype(bool), kept[layer, head])  # 4 KV heads for 4 heads
    assert packed["grid"] == 24 and cells == (28 if coarse else 24)
    assert packed["tokens"][0] == {"text": "z", "word": "zip", "box": [2, 2, 24, 15], "cells": [0, 1, 6, 7]}
    assert packed["tokens"][2] == {"text": " ", "word": None, "box": None, "cells": []}
    assert pack(page, table, 10**6) == pack(page, table, 10**6)


def test_room_is_kept_to():
    page, table = crafted.reading(), crafted.table()
    without = len(json.dumps(pack(page, table, 0)))
    for room in (without + 1500, without + 700):
        packed = pack(page, table, room)
        assert len(json.dumps(packed | {"heads": []})) <= room
        assert 0 < len(packed["heads"]) < 20 and packed["heads"][0] == [0, 0]
    assert pack(page, table, 0)["heads"] == []


def test_query_heads_share_what_their_kv_head_keeps():
    page, table = crafted.reading(), crafted.table()
    halves = {choice: kept[:, :2] for choice, kept in page.kept.items()}
    packed = pack(type(page)(**(vars(page) | {"kept": halves})), table, 10**6)
    bits = unpacked(packed["bits"]).reshape(20, 4, -1)
    at = {tuple(head): i for i, head in enumerate(packed["heads"])}
    assert np.array_equal(bits[at[1, 0]], bits[at[1, 1]]) and not np.array_equal(bits[at[1, 1]], bits[at[1, 2]])


def test_large_pages_are_made_smaller():
    page = crafted.reading(size=(3000, 2000))
    packed = pack(page, crafted.table(), 10**6)
    kind, text = packed["image"].split(",")
    assert kind == "data:image/jpeg;base64" and (packed["width"], packed["height"]) == (3000, 2000)
    assert Image.open(io.BytesIO(base64.b64decode(text))).size == (1000, 667)
