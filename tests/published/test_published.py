"""Published numbers: read, and beside ours only where model and task are the same."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sparsemm.published import BENCHMARKS, MODELS, accuracy, beside

QWEN = "Qwen/Qwen2-VL-7B-Instruct"


def row(**change):
    return SimpleNamespace(**{"task": "docvqa_val", "condition": "", "setting": "sparsemm", "budget": 256} | change)


def test_every_name_has_numbers():
    for model in MODELS:
        assert len(accuracy(f"o/{model}", "docvqa")) == 30
    for task in BENCHMARKS:
        values = accuracy(QWEN, task)
        assert len(values) == 30
        most = 2.0 if task == "textcaps" else 1.0  # CIDEr may be above 1
        assert all(0 < value <= most for value, _ in values.values())


def test_numbers_stand_beside_ours_once():
    ours = row()
    assert beside(QWEN, [row(), ours, row(condition="area over log2 B", budget=None), row(budget=77)]) == [
        (ours, 0.9345, "ANLS")
    ]


@pytest.mark.parametrize(("checkpoint", "task"), [("a/other", "docvqa"), (QWEN, "read"), (QWEN, "qa"), ("", "")])
def test_nothing_stands_beside_another_model_or_task(checkpoint, task):
    assert accuracy(checkpoint, task) == {} and beside(checkpoint, [row(task=task)]) == []


def test_a_local_folder_of_the_same_name_is_nobodys_model(tmp_path):
    folder = tmp_path / "Qwen2-VL-7B-Instruct"
    assert accuracy(str(folder), "docvqa")
    folder.mkdir()
    assert accuracy(str(folder), "docvqa") == {}
