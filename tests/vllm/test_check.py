"""The first command on a new machine: it says that right answers are right, and that wrong ones are not."""

from __future__ import annotations

import importlib.util
import json

import pytest

from sparsemm.vllm import check
from sparsemm.vllm.check import Answer, compare, main
from tests.vllm.engines import CHECKPOINTS

RIGHT = [Answer([5, 6, 7], [2.0, 1.0, 3.0]), Answer([1, 2, 3], [2.0, 0.1, 3.0])]


def test_answers_differ_where_their_first_token_does():
    assert compare(RIGHT, [[5, 6, 7], [1, 2, 3]], 0.2) == {"requests": 2, "equal": 2, "margins": [], "ok": True}
    rounded = compare(RIGHT, [[5, 6, 7], [1, 9, 9]], 0.2)
    assert rounded == {"requests": 2, "equal": 1, "margins": [0.1], "ok": True}
    assert not compare(RIGHT, [[5, 6, 7], [1, 9, 9]], 0.05)["ok"]
    assert compare(RIGHT, [[9, 6, 7], [1, 2, 3]], 0.2) == {"requests": 2, "equal": 1, "margins": [2.0], "ok": False}
    with pytest.raises(ValueError, match="zip"):
        compare(RIGHT, [[5, 6, 7]], 0.2)


with_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make vllm")
COMMAND = [str(CHECKPOINTS / "tiny-qwen2-vl"), "--pages", "2", "--new", "12", "--budget", "24", "--window", "4"]


@with_vllm
def test_an_engine_on_this_machine(capsys):
    assert main(COMMAND) == 0
    report = json.loads(capsys.readouterr().out)
    engine = report["engines"]["float32"]
    assert report["device"] == "cpu" and engine["requests"] == 3 and engine["ok"] and engine["equal"] >= 2
    assert engine["kernel"] == "TorchKernel" and engine["graphs"] == "NONE"


@with_vllm
def test_wrong_answers_are_noticed(capsys, monkeypatch):
    """Here the engine keeps less of a page than transformers does."""
    right = check.right_answers

    def with_another_budget(checkpoint, dtype, count, new, cache):
        return right(checkpoint, dtype, count, new, cache | {"budget": 200})

    monkeypatch.setattr(check, "right_answers", with_another_budget)
    assert main(COMMAND) == 1
    assert not json.loads(capsys.readouterr().out)["engines"]["float32"]["ok"]
