"""The control of smaller images: prompts within the budget, as large as that allows, and what cannot be had."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from PIL import Image

from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import DataError
from sparsemm.evaluate.answers import make_batch
from sparsemm.evaluate.downsampled import (
    NAME,
    PromptLengths,
    downsampled_outcomes,
    downsampled_tasks,
    scaled,
    smaller_images,
)
from sparsemm.evaluate.questions import Question
from sparsemm.evaluate.stage import make_evaluator
from sparsemm.evaluate.tasks.pages import PageTask
from sparsemm.params import parse_params

ROOT = Path(__file__).parents[2]
KEY = "tiny-qwen2-vl"
RECORDS = [draw_record("evaluation", 0, i, PageStyle()) for i in range(3)]


def task(name="read"):
    return PageTask(name, RECORDS, "Read the page.", 0)


def lengths_of(processor, questions):
    return [int(make_batch(processor, questions, [at]).inputs["input_ids"].shape[1]) for at in range(len(questions))]


def test_prompts_are_as_long_as_the_budget_allows(tiny):
    _, processor = tiny("tiny-qwen2-vl")
    tasks = {"read": task(), "qa": task("qa")}
    full = lengths_of(processor, task().questions)
    smaller = downsampled_tasks(processor, tasks, [32, 44, 500])
    assert set(smaller) == {(name, budget) for name in tasks for budget in (32, 44, 500)}
    for (name, budget), one in smaller.items():
        lengths = lengths_of(processor, one.questions)
        assert max(lengths) <= budget
        if budget == 500:  # there was no need for anything smaller
            assert lengths == lengths_of(processor, tasks[name].questions)
            continue
        for question, made in zip(tasks[name].questions, one.questions, strict=True):
            (page,), (image,) = question.images(), made.images()
            assert image.size < page.size and made.prompt == question.prompt
            larger = [one.resize(scaled(one.size, image.width / page.width / 0.92)) for one in [page]]
            more = lengths_of(processor, [Question(question.prompt, lambda: larger)])  # noqa: B023
            assert more[0] > budget
    short, longer = (lengths_of(processor, smaller["read", budget].questions)[0] for budget in (32, 44))
    assert short < longer < min(full)


def test_answers_are_scored_as_those_of_the_task(tiny):
    _, processor = tiny("tiny-qwen2-vl")
    one = downsampled_tasks(processor, {"read": task()}, [40])["read", 40]
    texts = [question.answer for question in task().questions]
    assert one.metric == task().metric
    assert [scored.value for scored in one.score(texts)] == [1.0] * 3
    assert one.score(["x"] * 3) == task().score(["x"] * 3)


def test_a_budget_below_the_text_is_left_out_and_said(tiny, caplog):
    _, processor = tiny("tiny-qwen2-vl")
    with caplog.at_level(logging.WARNING):
        assert set(downsampled_tasks(processor, {"read": task()}, [8, 40])) == {("read", 40)}
    assert "read at budget 8 has no row downsampled: 3 of 3 prompts are longer at any size of the image" in caplog.text


def test_a_processor_with_a_fixed_resolution_is_refused(tiny):
    _, processor = tiny("tiny-llava-next-mistral")
    with pytest.raises(DataError, match="no size of the images gives prompts of 40 tokens.*fixed size"):
        downsampled_tasks(processor, {"read": task()}, [24, 40])


def test_sizes_are_counted_the_same_with_and_without_pixels(tiny, monkeypatch):
    _, processor = tiny("tiny-qwen2-vl")
    question = task().questions[0]
    quick = PromptLengths(processor)
    want = quick.factor(question, 40)
    monkeypatch.setattr(PromptLengths, "_shorter", lambda *_: None)
    slow = PromptLengths(processor)
    assert slow.factor(question, 40) == want and len(quick._counts) < len(slow._counts) / 2


def test_images_that_the_processor_refuses_are_not_taken(tiny):
    _, processor = tiny("tiny-qwen2-vl")
    narrow = Question("Read.", lambda: [Image.new("RGB", (1000, 4), "white")])  # 250 times as wide as high
    assert PromptLengths(processor).exact([(1000, 4)], "Read.") is None
    factor = PromptLengths(processor).factor(narrow, 60)
    assert factor is not None
    assert lengths_of(processor, [Question("Read.", lambda: smaller_images(narrow, factor))])[0] <= 60
    assert scaled((3, 1), 0.01) == (1, 1) and NAME == "downsampled"


def test_the_evaluator_asks_about_smaller_images_and_counts_what_they_hold(tiny, table, tmp_path):
    scores = tmp_path / "artifacts" / "scores"
    scores.mkdir(parents=True)
    shutil.copy(table, scores / f"{KEY}.safetensors")
    (tmp_path / "artifacts" / "datasets").mkdir()
    (tmp_path / "artifacts" / "datasets" / "evaluation.parquet").write_bytes(b"pages")
    params = parse_params((ROOT / "params.yaml").read_text(encoding="utf-8"))
    evaluator = make_evaluator(params, KEY, tmp_path, {"window": 4}, {})
    evaluator.__dict__["_loaded"] = tiny(KEY)
    smaller = downsampled_tasks(evaluator.processor, {"read": task()}, [32, 44])
    outcomes = downsampled_outcomes(evaluator, smaller)
    assert [(arm.setting, arm.budget) for arm in outcomes] == [(NAME, 32), (NAME, 44)]
    kept = [outcome.kept for outcome in outcomes.values()]
    assert kept == [float(lengths_of(evaluator.processor, one.questions)[0]) for one in smaller.values()]
    assert all(outcome.bytes > 0 and len(outcome.values) == 3 for outcome in outcomes.values())
    evaluator.__dict__["_loaded"] = None  # everything is in the store: nobody is asked again
    again = downsampled_outcomes(evaluator, smaller)
    assert [one.values.tolist() for one in again.values()] == [one.values.tolist() for one in outcomes.values()]
