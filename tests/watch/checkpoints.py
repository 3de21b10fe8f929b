"""Small checkpoint folders that are whole, and ways to break them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CONFIG = {"model_type": "qwen2_vl", "dtype": "float32"}


def write_checkpoint(folder: Path, value: float = 0.0, shards: int = 1) -> Path:
    """A config and `shards` safetensors files, with an index where there are several."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    names = ["model.safetensors"] if shards == 1 else [f"model-{i}.safetensors" for i in range(shards)]
    for number, name in enumerate(names):
        save_file({f"w{number}": np.full(16, value, dtype=np.float32)}, folder / name)
    if shards > 1:
        index = {"weight_map": {f"w{number}": name for number, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
