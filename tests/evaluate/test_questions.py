"""Requests of lmms-eval: what is refused, what is cut off, and which ones run together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from PIL import Image

from sparsemm.errors import DataError
from sparsemm.evaluate.questions import Question, batches, question


def request(visuals=None, **options):
    dataset = {"test": [{"image": visuals}]}
    return SimpleNamespace(args=("What?", options, lambda doc: doc["image"], 0, "mine", "test")), dataset


def test_stops_and_length_are_the_tasks():
    one = question(*request(until=["\n", "", "ASSISTANT:"], max_new_tokens=7), 128)
    assert one.stops == ("\n", "ASSISTANT:") and one.max_new_tokens == 7 and one.images() == []
    assert one.trim(" five \n six") == "five" and one.trim("ASSISTANT: x") == ""
    one = question(*request(until="stop"), 128)
    assert one.stops == ("stop",) and one.max_new_tokens == 128


def test_images_are_made_rgb():
    (image,) = question(*request([Image.new("L", (3, 2))]), 1).images()
    assert image.mode == "RGB"


@pytest.mark.parametrize(
    "options", [{"do_sample": True}, {"num_beams": 4}, {"do_sample": False, "temperature": 0.9, "top_p": 0.5}]
)
def test_sampling_is_refused(options):
    with pytest.raises(DataError, match="mine: sampling or beams .*temperature=0"):
        question(*request(**options), 1)
    question(*request(do_sample=False, temperature=0.0, top_p=None, num_beams=1), 1)


def test_videos_are_refused():
    with pytest.raises(DataError, match="shows a str"):
        question(*request(["video.mp4"]), 1).images()


def test_batches_hold_every_question_once_and_one_length():
    sizes = [(4, 4), (9, 9), (4, 4), (4, 4), (9, 9)]
    asked = [
        Question("a" * at, lambda size=size: [Image.new("RGB", size)], (), 8 if at < 3 else 16)
        for at, size in enumerate(sizes)
    ]
    assert batches(asked, 2) == [[0, 2], [1], [3, 4]]
    assert batches(asked, 1) == [[0], [2], [1], [3], [4]] and batches([], 4) == []
