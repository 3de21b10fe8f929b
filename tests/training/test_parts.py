"""Parts of real pages as training batches: what is on them, and that training with them stops and goes on."""

from __future__ import annotations

import json
import random
from functools import partial

import numpy as np
import pytest
from PIL import Image

from sparsemm.datasets.records import Entry, Record, write_records
from sparsemm.datasets.synthetic import PageStyle, draw_record, page_text
from sparsemm.errors import DataError
from sparsemm.files import sha256_file
from sparsemm.training import card
from sparsemm.training.batches import IGNORE, BatchMaker
from sparsemm.training.parts import GROWTH, MOST_WORDS, SIZES, Parts, cut_out, redrawn, whole_words
from sparsemm.training.train import main, pages_before
from sparsemm.training.tuning import Tuning
from tests.training.runs import check_resumed_run, same, write_prose
from tests.training.test_tuning import FEW, NAME, TOWER, base, run  # noqa: F401

pytestmark = pytest.mark.usefixtures("base")


@pytest.fixture
def records(tmp_path):
    """Pages of eight columns, of which a part shows two."""
    path = tmp_path / "pages.parquet"
    write_records(path, [draw_record("train", 9, i, PageStyle(8, 12, (48, 60))) for i in range(3)])
    return path


def page(*boxes: tuple[int, int, int, int]) -> Record:
    """A white page with a black word in every box."""
    image = Image.new("RGB", (400, 300), "white")
    for box in boxes:
        image.paste("black", box)
    entries = tuple(Entry(f"w{i}", tuple(map(float, box)), "word") for i, box in enumerate(boxes))
    return Record("page", image, entries, "s", "l")


def test_a_part_holds_whole_words_and_no_other_ink():
    whole = [(200, 100, 230, 110), (240, 100, 260, 110), (200, 150, 220, 160)]
    whole_page = page((0, 0, 20, 10), *whole, (360, 100, 399, 110))
    words = whole_words(whole_page, 200, 100, (168, 84))
    assert [word.text for word in words] == ["w1", "w2", "w3"]  # not w4, which the right edge cuts
    assert page_text(cut_out(whole_page, words[1:], 200, 100, (168, 84))) == "w2 w3"
    part = cut_out(whole_page, words, 200, 100, (168, 84))
    assert page_text(part) == "w1 w2 w3"
    black = np.asarray(part.image)[..., 0] == 0
    expected = np.zeros_like(black)
    for box in (entry.box for entry in part.entries):
        expected[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
    assert part.image.size == (168, 84) and (black == expected).all() and part.validate()


def test_words_are_drawn_until_the_page_is_full():
    record = redrawn(["one", "a-word-that-is-longer-than-a-line", *["seven77"] * 40], 0)
    assert page_text(record).split()[:2] == ["one", "seven77"] and record.validate()
    assert len(record.entries) == 13  # one in each of six lines of two columns, and a short one before the first
    assert len({entry.box[1] for entry in record.entries}) == 6
    assert [entry.box[0] < 84 for entry in record.entries] == [True] * 7 + [False] * 6


def test_both_kinds_of_parts_are_drawn_in_both_sizes(records):
    source, rng = Parts(records, 0), random.Random(0)
    drawn = [source.draw(rng, SIZES[i % 2], 6) for i in range(60)]
    assert {part.image.size for part in drawn} == set(SIZES)
    assert 10 < sum(part.source == "redrawn" for part in drawn) < 50
    assert {len(part.validate().entries) for part in drawn} == {1, 2, 3, 4, 5, 6}


def test_parts_have_few_words_at_first(records):
    source, maker = Parts(records, 0), BatchMaker(Tuning(NAME, 0, "cpu", **FEW).processor, 0)

    def longest(number: int) -> int:
        texts = maker.tokenizer.batch_decode(
            source.batch(maker, 8, number).labels.clamp(min=0), skip_special_tokens=True
        )
        return max(len(text.split()) for text in texts)

    assert longest(0) <= MOST_WORDS < longest(20 * GROWTH)


def test_a_batch_asks_for_the_words_of_its_parts(records):
    processor = Tuning(NAME, 0, "cpu", **FEW).processor
    source, maker = Parts(records, 0), BatchMaker(processor, 0)
    batch, again, other = (source.batch(maker, 3, number) for number in (5, 5, 7))
    assert same(batch.inputs, again.inputs) and not same({"labels": batch.labels}, {"labels": other.labels})
    rng = random.Random("parts/0/5")
    wanted = [source.draw(rng, SIZES[5 % 2], MOST_WORDS) for _ in range(3)]
    answers = [processor.tokenizer.decode(row[row != IGNORE], skip_special_tokens=True) for row in batch.labels]
    assert answers == [page_text(part) for part in wanted]
    images = processor.image_processor([part.image for part in wanted], return_tensors="np")["pixel_values"]
    assert np.allclose(batch.to("cpu").inputs["pixel_values"][:, 1:], images[:, 1:], atol=1e-5)
    assert batch.inputs["input_ids"].shape == batch.pointers.shape and (batch.pointers == IGNORE).all()


def test_a_run_that_was_stopped_ends_where_one_that_was_not_does(records, tmp_path, capsys):
    options = {"steps": 6, "save_every": 3, "parts": Parts(records, 0), "parts_share": 0.5}
    whole = check_resumed_run(Tuning, run, tmp_path, capsys, last=5, **options)
    assert not same(whole, run(tmp_path / "drawn", **options | {"parts": None}))
    assert same(run(tmp_path / "none", **options | {"parts_share": 0.0}), run(tmp_path / "no", steps=6))


def test_the_card_tells_of_them(records, tmp_path, monkeypatch):
    monkeypatch.setattr(card, "held_out", partial(card.held_out, pages=1))
    prose = write_prose(tmp_path / "prose")
    arguments = ["--steps", "4", "--batch-size", "2", "--device", "cpu", "--prose", str(prose), "--tower", str(TOWER)]
    for name, more in (("with", ["--records", str(records)]), ("without", [])):
        main([NAME, "--output", str(tmp_path / name), *arguments, "--alignment-steps", "1", "--rank", "2", *more])
    written, without = (json.loads((tmp_path / name / "card.json").read_text()) for name in ("with", "without"))
    training = written["training"]
    assert training["parts"] == {"share": 0.5, "pages": 3, "records_sha256": sha256_file(records)}
    assert "part_answer" in training["last"] and "read_answer" in training["last"]
    assert written["data"] == without["data"] + "; parts of real pages" and "parts" not in without["training"]


def test_pages_without_a_part_are_refused(tmp_path):
    sparse, large = tmp_path / "sparse.parquet", tmp_path / "large.parquet"
    write_records(sparse, [page((0, 0, 20, 10))])
    with pytest.raises(DataError, match="no page with 4 words"):
        Parts(sparse, 0)
    write_records(large, [page(*((0, 75 * i, 390, 75 * i + 70) for i in range(4)))])
    with pytest.raises(DataError, match="no part of 84 x 84 pixels with 4 words.*lower resolution"):
        Parts(large, 0).draw(random.Random(0), (84, 84), 4)
    with pytest.raises(DataError, match="no such file"):
        Parts(tmp_path / "missing.parquet", 0)


@pytest.mark.parametrize(
    "name, more, message",
    [
        (NAME, ["--records-share", "1"], "above 0 and below 1"),
        (NAME, ["--records-share", "nan"], "above 0 and below 1"),
        ("tiny-qwen2-vl", ["--records", "x"], "pretrained language model"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(name, more, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([name, "--output", str(tmp_path / "out"), *more])
    assert message in capsys.readouterr().err


def test_real_pages_have_their_share_of_the_pages():
    assert [pages_before(number, 0.5) for number in range(7)] == [0, 1, 1, 2, 2, 3, 3]
