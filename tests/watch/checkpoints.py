"""Small checkpoint folders that are whole, and ways to break them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

TEXT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 16}
CONFIG = {
    "model_type": "qwen2_vl",
    "dtype": "float32",
    "text_config": TEXT | {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "vision_config": {"depth": 1, "embed_dim": 8, "hidden_size": 8, "num_heads": 2, "patch_size": 2},
}


@cache
def shapes() -> dict[str, tuple[int, ...]]:
    """Of the weights that such a model has."""
    import torch
    from transformers import AutoConfig, Qwen2VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(AutoConfig.for_model(**CONFIG))
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def write_checkpoint(folder: Path, value: float = 0.0, shards: int = 1) -> Path:
    """A config and `shards` safetensors files, with an index where there are several."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    weights = {name: np.full(shape, value, dtype=np.float32) for name, shape in shapes().items()}
    files = ["model.safetensors"] if shards == 1 else [f"model-{i}.safetensors" for i in range(shards)]
    weight_map = {name: files[number % shards] for number, name in enumerate(weights)}
    for file in files:
        save_file({name: weights[name] for name, place in weight_map.items() if place == file}, folder / file)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
