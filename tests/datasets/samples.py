"""Small data sets in the published formats, and params that name them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from sparsemm.datasets import download
from sparsemm.datasets.records import Record, read_records
from sparsemm.params import Params, parse_params

MINE = Path("artifacts/datasets/mine.parquet")
OWN = Path(__file__).parent.parent.parent / "params.yaml"


def params(**given: Any) -> Params:
    """The repository's params with one more data set, `mine`."""
    values = yaml.safe_load(OWN.read_text())
    values["datasets"]["mine"] = {"samples": 1000, **given}
    return parse_params(json.dumps(values))


def download_files(root: Path, files: dict[str, bytes], **given: Any) -> list[Record]:
    """Writes files below `path` of a data set, and returns the records that the download stage makes of it."""
    for name, data in files.items():
        path = root / given["path"] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    download.run(params(**given), "mine", root)
    return read_records(root / MINE)


def png(width: int = 60, height: int = 40, seed: int = 0) -> bytes:
    """A noisy image: PNG cannot make it small, so that bytes sent mean something."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def blank(width: int, height: int) -> bytes:
    """A white image of any size in a few bytes."""
    buffer = io.BytesIO()
    Image.new("1", (width, height), 1).save(buffer, format="PNG")
    return buffer.getvalue()


BOMB = blank(9_500, 9_500)  # just above what Pillow takes for an attack


def parquet(rows: list[dict[str, Any]], features: dict[str, Any] | None = None, group: int = 4) -> bytes:
    """Rows as `datasets` would push them, with its features in the schema's metadata."""
    table = pa.Table.from_pylist(rows)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=group)
    return buffer.getvalue()


def synthdog_rows(count: int, first: int = 0, size: tuple[int, int] = (60, 40)) -> list[dict[str, Any]]:
    """Rows as nnethercott/synthdog-en-detection has them, and columns that are not needed."""
    return [
        {
            "image": {"bytes": png(*size, seed=number), "path": None},
            "ground_truth": "x" * 100,
            "2_coord": [
                {"chunk": f"page {number}", "coord": [[1.0, 2.0], [30.5, 12.0]]},
                {"chunk": "below ", "coord": [[1.0, 20.0], [70.0, 32.0]]},
            ],
        }
        for number in range(first, first + count)
    ]


NAMES = ["person", "bicycle", "car"]
COCO_FEATURES = {
    "image": {"_type": "Image"},
    "objects": {
        "feature": {"category": {"names": NAMES, "_type": "ClassLabel"}, "bbox": {"length": 4}},
        "_type": "Sequence",
    },
}


def coco_rows(count: int) -> list[dict[str, Any]]:
    """Rows as detection-datasets/coco has them."""
    return [
        {
            "image": {"bytes": png(seed=number), "path": None},
            "image_id": number,
            "objects": {
                "category": [2, 0],
                "bbox": [[0.0, 1.0, 20.0, 30.0], [5.5, 5.5, 60.5, 39.0]],
                "area": [1.0, 2.0],
            },
        }
        for number in range(count)
    ]
