"""A trained small model, a few pages, and a score table of its shape: what studies begin from."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml

from sparsemm.datasets.records import write_records
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.files import write_json
from sparsemm.models import load_model
from sparsemm.params import parse_params
from sparsemm.scores import ScoreTable
from sparsemm.studies import tables
from tests.studies.crafted import KEY, STUDIES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """(params, root): three pages, a table of random scores, small studies; nothing has been studied."""
    from sparsemm.models import fingerprint

    root = tmp_path_factory.mktemp("studies")
    given = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    entry = given["models"][KEY]
    entry["checkpoint"] = str(ROOT / entry["checkpoint"])
    given["models"], given["studies"] = {KEY: entry}, STUDIES
    given["evaluate"] |= {"samples": 3, "batch_size": 4, "bootstrap": 50, "max_new_tokens": 8}
    params = parse_params(yaml.safe_dump(given))
    records = [draw_record("evaluation", 0, index, PageStyle(1, 6, (3, 6))) for index in range(3)]
    write_records(root / "artifacts" / "datasets" / "evaluation.parquet", records)
    write_records(root / "artifacts" / "datasets" / "calibration.parquet", records[:2])
    model, _ = load_model(params.model(KEY), "cpu")
    config = model.config.get_text_config()
    shape = config.num_hidden_layers, config.num_attention_heads
    header = {"model": KEY, "revision": None, "fingerprint": fingerprint(model.config)}
    per_sample = np.random.default_rng(0).random((6, *shape)) ** 4
    header |= {"num_kv_heads": config.num_key_value_heads, "dataset": "calibration"}
    table = ScoreTable.from_samples(per_sample, np.zeros(shape, np.int64), header)
    table.save(root / "artifacts" / "scores" / f"{KEY}.safetensors")
    write_json(root / tables.FOLDER / f"{KEY}.json", {})  # no data set under `robustness` was chased over
    return params, root


@pytest.fixture
def rows():
    """Rows of a study that was made."""

    def read(root, name):
        with open(root / "artifacts" / "studies" / name / f"{KEY}.csv", newline="", encoding="utf-8") as handle:
            return list(csv.DictReader(handle))

    return read
