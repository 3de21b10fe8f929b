"""Small studies, and tables as other stages would have written them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sparsemm.datasets.records import write_records
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.files import result_path
from sparsemm.models import fingerprint, load_model
from sparsemm.params import parse_params
from sparsemm.scores import ScoreTable

ROOT = Path(__file__).parents[2]
KEY = "tiny-qwen2-vl"
FEW = {"samples": 3, "tasks": ["qa"]}
# What the entries of params.yaml become; any other study gets `SMALL` where it has such an option.
SMALL = FEW | {"budgets": [12], "budget": 12}
ENTRIES = {
    "length": {"groups": 2},
    "masking": FEW | {"fractions": [0.1], "zero": ["query"], "seeds": 2},
    "parts": FEW | {"budgets": [12]},
    "sources": FEW | {"budgets": [12]},
    "rho": {"samples": 3, "values": [0.5], "budget": 12},
    "later": {"samples": 3, "methods": ["full", "sparsemm", "snapkv"], "budgets": [12]},
    "holding": FEW | {"methods": ["full", "sparsemm", "h2o"], "budgets": [12]},
    "storage": FEW | {"methods": ["snapkv"], "budgets": [12]},
    "retrieval": FEW | {"budgets": [12], "prompts": 2, "words": 5},
    "oracle": FEW | {"budgets": [12], "rhos": [0.1, 0.4], "later": [24]},
    "protocol": FEW
    | {
        "methods": ["snapkv", "sparsemm", "random", "duo"],
        "shares": [0.1, 0.5],
        "budgets": [12],
        "seeds": 2,
        "repetitions": 2,
    },
    "registered": FEW | {"candidate": "sparsemm+peak", "first": 1, "methods": ["full", "random"], "budgets": [12]},
    "language": {"fractions": [0.1], "seeds": 2, "windows": 3, "tokens": 16, "copies": 2, "words": 4},
}


def small(studies):
    """The studies of params.yaml, with few pages."""

    def entry(name, given):
        return ENTRIES.get(name) or given | {option: SMALL[option] for option in given.keys() & SMALL.keys()}

    return {group: {name: entry(name, given) for name, given in own.items()} for group, own in studies.items()}


def write_samples(root, values, key="m", answers=("ab", "abcd")):
    """The evaluate stage's samples: {(task, method, budget): values of every page, or of several draws}."""
    rows = []
    for (task, method, budget), draws in values.items():
        for draw in draws if isinstance(draws[0], list) else [draws]:
            for page, value in enumerate(draw):
                row = {"task": task, "method": method, "budget": budget, "id": str(page), "value": float(value)}
                rows.append(row | {"page": f"p{page}", "answer": answers[page % len(answers)], "prediction": ""})
    folder = root / "artifacts" / "evaluate"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{key}.samples.parquet")
    write_csv(
        folder / f"{key}.csv",
        [
            {"task": t, "method": m, "budget": b or "", "kept_slots": (b or 90) + 0.5, "bytes": 64 * (b or 90)}
            for t, m, b in values
        ],
    )


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def begin(root):
    """(params, root): three pages, a table of random scores, small studies."""
    given = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    entry = given["models"][KEY]
    entry["checkpoint"] = str(ROOT / entry["checkpoint"])
    given["models"], given["studies"] = {KEY: entry}, small(given["studies"])
    given["evaluate"] |= {"samples": 3, "batch_size": 4, "bootstrap": 50, "max_new_tokens": 8}
    params = parse_params(yaml.safe_dump(given))
    records = [draw_record("evaluation", 0, index, PageStyle(1, 6, (3, 6))) for index in range(3)]
    write_records(root / "artifacts" / "datasets" / "evaluation.parquet", records)
    write_records(root / "artifacts" / "datasets" / "calibration.parquet", records[:2])
    model, _ = load_model(params.model(KEY), "cpu")
    config = model.config.get_text_config()
    shape = config.num_hidden_layers, config.num_attention_heads
    header = {"model": KEY, "revision": None, "fingerprint": fingerprint(model.config)}
    header |= {"num_kv_heads": config.num_key_value_heads}
    for seed, dataset in enumerate((None, *params.robustness)):
        per_sample = np.random.default_rng(seed).random((6, *shape)) ** 4
        header["dataset"] = dataset or "calibration"
        table = ScoreTable.from_samples(per_sample, np.zeros(shape, np.int64), header)
        table.save(result_path(root, "scores", KEY, ".safetensors", dataset))
    return params, root
