"""Decode steps beside other caches: what a worker holds and decodes, and what becomes of its seconds."""

from __future__ import annotations

import sys

import pytest

from benchmarks import peers, peers_worker
from benchmarks.peers_worker import Worker
from sparsemm.errors import ModelError
from tests import tiny_base

OPTIONS = {"budget": 8, "window": 2, "scores": [[1.0, 0.5, 0.1, 0.2]] * 4, "room": 8}


@pytest.fixture
def folder(tmp_path):
    tiny_base.language_model().save_pretrained(tmp_path / "text")
    return str(tmp_path / "text")


def test_a_worker_decodes_alike_with_full_caches_and_holds_less_with_ours(folder, monkeypatch):
    draw = peers_worker.torch.randint
    monkeypatch.setattr(peers_worker.torch, "randint", lambda low, high, *rest, **more: draw(low, 100, *rest, **more))
    worker = Worker("ours", folder, **OPTIONS)
    made = worker.prompt(40)
    slot = 2 * 16 * 4  # bytes of a key and a value
    assert made["dynamic"]["bytes"] == 40 * 4 * 2 * slot
    assert made["static"]["bytes"] == 48 * 4 * 2 * slot
    for name in ("sparsemm", "snapkv"):
        assert 8 * 4 * 2 * slot <= made[name]["bytes"] < made["dynamic"]["bytes"]
    steps = {name: worker.steps(name, 4) for name in made}
    assert all(len(one["cpu"]) == len(one["wall"]) == 3 and min(one["wall"]) > 0 for one in steps.values())
    (dynamic, at), (static, _) = worker.next["dynamic"], worker.next["static"]
    assert dynamic.tolist() == static.tolist() and at == 44


class Fake:
    """A worker whose steps cost what the test says, each turn a little more."""

    costs = {"dynamic": 2.0, "ours": 1.0}

    def __init__(self, python, **options):
        self.versions, self.turn = {"torch": "1", "transformers": "2"}, 0

    def ask(self, prompt=None, cache=None, steps=None):
        if prompt:
            return {name: {"bytes": 10 * prompt, "prompt_cpu_seconds": 1.0} for name in self.costs}
        self.turn += 1
        seconds = [self.costs[cache] * (1 + self.turn / 100)] * (steps - 1)
        return {"cpu": seconds, "wall": seconds}

    def end(self):
        """Nothing runs."""


def test_ratios_are_to_the_full_cache_of_the_same_process(monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "Process", Fake)
    result = peers.run({"ours": "python"}, tmp_path, (16, 32), 3, 4)
    rows = {(row["length"], row["cache"]): row for row in result["rows"]}
    assert len(rows) == 4 and rows[32, "ours"]["bytes"] == 320
    assert all(row["ratio_to_dynamic"] == [1.0, 1.0, 1.0] for (_, name), row in rows.items() if name == "dynamic")
    middle, low, high = rows[16, "ours"]["ratio_to_dynamic"]
    assert low <= middle <= high and middle == pytest.approx(0.5, abs=0.02)


def test_a_worker_that_ends_says_why():
    with pytest.raises(ModelError, match="worker ended"):
        peers.Process(sys.executable, kind="ours")
