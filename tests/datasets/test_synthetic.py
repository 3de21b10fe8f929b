"""Synthetic pages: deterministic, exact boxes, splits that never overlap."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from sparsemm.datasets import synthetic
from sparsemm.datasets.synthetic import SPLITS, TYPE_SIZES, PageStyle, draw_record, page_text, questions, split_of
from sparsemm.errors import DataError

STYLE = PageStyle(2, 6, (6, 12))


def test_same_seed_same_page() -> None:
    first, second = (draw_record("train", 3, 7, STYLE) for _ in range(2))
    assert first.entries == second.entries
    assert first.image.tobytes() == second.image.tobytes()
    assert draw_record("train", 4, 7, STYLE).entries != first.entries


def test_splits_never_overlap() -> None:
    texts = {}
    for split in SPLITS:
        records = [draw_record(split, 0, index, STYLE) for index in range(60)]
        assert all(split_of([e.text for e in record.entries[1::2]]) == split for record in records)
        texts[split] = {page_text(record) for record in records}
        assert len(texts[split]) == 60
    assert not texts["train"] & texts["calibration"] and not texts["train"] & texts["evaluation"]
    assert not texts["calibration"] & texts["evaluation"]


@pytest.mark.parametrize("scale", [1, 4])
def test_ink_lies_inside_the_boxes(scale: int) -> None:
    for index in range(20):
        record = draw_record("evaluation", 1, index, PageStyle(1, 6, (1, 3), scale))
        pixels = np.asarray(record.image)[:, :, 0].astype(int)
        paper = np.median(pixels)
        inside = np.zeros(pixels.shape, dtype=bool)
        for entry in record.entries:
            x0, y0, x1, y1 = (round(v) for v in entry.box)
            # Descenders and wide letters of a shifted line may touch the neighbouring cell by two pixels.
            inside[max(y0 - 2 * scale, 0) : y1 + 2 * scale, max(x0 - 2 * scale, 0) : x1 + 2 * scale] = True
            assert (pixels[y0:y1, x0:x1] < paper - 60).any(), entry
        assert not (pixels[~inside] < paper - 80).any()


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The font size of every word drawn from now on, in order."""
    drawn: list[int] = []
    font = synthetic._font

    def noted(name: str, size: int) -> object:
        drawn.append(size)
        return font(name, size)

    monkeypatch.setattr(synthetic, "_font", noted)
    return drawn


@pytest.mark.parametrize("type_size", TYPE_SIZES)
def test_type_has_its_size_and_the_values_are_the_same(sizes: list[int], type_size: Any) -> None:
    records = [draw_record("train", 0, index, PageStyle(type_size=type_size)) for index in range(30)]
    low, high = TYPE_SIZES[type_size]
    assert set(sizes) == set(range(low, high + 1))
    plain = [draw_record("train", 0, index, PageStyle()) for index in range(30)]
    for one, other in zip(records, plain, strict=True):
        assert [entry.text for entry in one.entries[1::2]] == [entry.text for entry in other.entries[1::2]]


def test_box_height_stands_for_font_size_between_scales_but_not_on_pages_of_one(sizes: list[int]) -> None:
    heights: list[float] = []
    for index in range(60):
        record = draw_record("train", 0, index, PageStyle(scale=(1, 2, 4)[index % 3]))
        heights += [entry.box[3] - entry.box[1] for entry in record.entries]
    assert np.corrcoef(heights, sizes)[0, 1] > 0.95
    small = [height for height, size in zip(heights, sizes, strict=True) if size <= max(TYPE_SIZES["plain"])]
    assert set(small) == {synthetic.CELL_HEIGHT} and len(set(sizes)) > 3


def test_questions_have_exact_answers() -> None:
    rng = random.Random(0)
    for index in range(20):
        record = draw_record("train", rng.randrange(100), index, STYLE)
        asked = questions(record)
        assert len(asked) * 2 == len(record.entries)
        words = page_text(record).split()
        for question in asked:
            anchor = question.prompt.rstrip("?").split()[-1] + (":" if question.kind == "value" else "")
            assert words[words.index(anchor) + 1] == question.answer


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(DataError, match="split 'test' is unknown"):
        draw_record("test", 0, 0, STYLE)
    with pytest.raises(DataError, match="cannot fill"):
        draw_record("train", 0, 0, PageStyle(1, 6, (4, 7)))
