"""The snippets of docs/cache.md, run as they stand in a process of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparsemm.models import fingerprint
from sparsemm.scores import ScoreTable

ROOT = Path(__file__).parents[2]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "cache.md").read_text(encoding="utf-8"), re.DOTALL)

BEFORE = "checkpoint = 'checkpoint'\n"
CONVERSATION = """
import torch
from PIL import Image
from sparsemm.prompts import build_inputs

page = Image.new("RGB", (140, 140), "white")
inputs = build_inputs(processor, [[page]], ["Read the page."])
said, cache = answer(inputs)
ids = torch.cat([said, said[:, -2:]], dim=1)
more, same = answer({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, cache)
assert same is cache and more.shape[1] > ids.shape[1]
assert cache.kept_slots().tolist() and 0 < cache.kept_bytes() <= cache.slab_bytes() and cache.slack_share() < 1

import sparsemm

sparsemm.load_scores = lambda name: scores  # there is no registry here
"""


@pytest.fixture
def folder(tmp_path, tiny):
    """What the snippets name: a checkpoint, and its scores."""
    model, processor = tiny("tiny-qwen2-vl")
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    header = {"model": "m", "revision": "r", "fingerprint": fingerprint(model.config), "num_kv_heads": 4}
    table = ScoreTable.from_samples(np.ones((2, 6, 16)), np.zeros((6, 16), np.int64), header)
    (tmp_path / "artifacts" / "scores").mkdir(parents=True)
    table.save(tmp_path / "artifacts" / "scores" / "my-model.safetensors")
    return tmp_path


def test_the_snippets_run(folder):
    service, *others = SNIPPETS
    text = "\n".join([BEFORE, service, CONVERSATION, *others])
    done = subprocess.run([sys.executable, "-c", text], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
