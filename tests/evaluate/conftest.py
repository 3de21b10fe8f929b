"""Twins of the paper's tasks, and a score table of a small checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparsemm.models import fingerprint
from sparsemm.scores import ScoreTable

KEY = "tiny-qwen2-vl"


@pytest.fixture(scope="session")
def twins(tmp_path_factory) -> Path:
    """A folder of twins, four documents each."""
    from sparsemm.evaluate.tasks.twins import write

    folder = tmp_path_factory.mktemp("twins")
    write(folder)
    return folder


@pytest.fixture(scope="session")
def table(tiny, tmp_path_factory) -> Path:
    """A score table of random scores of tiny-qwen2-vl."""
    config = tiny(KEY)[0].config
    text = config.get_text_config()
    shape = (text.num_hidden_layers, text.num_attention_heads)
    header = {"model": KEY, "revision": None, "fingerprint": fingerprint(config)}
    header["num_kv_heads"] = text.num_key_value_heads
    path = tmp_path_factory.mktemp("scores") / "table.safetensors"
    each = np.random.default_rng(0).random((1, *shape)) ** 3
    ScoreTable.from_samples(each, np.zeros(shape, np.int64), header).save(path)
    return path
