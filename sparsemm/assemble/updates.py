"""Reads and writes folders of updates, which hold the weights trained on top of a base.

A folder of updates holds `updates.safetensors` (bf16: vision tower, projector, and for every linear layer of the
language model the two factors of its update), `base.json` (the pin of the base) and the other files of a checkpoint.
Weights and tokenizer of the language model come from the base.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sparsemm.assemble.base import Pin
from sparsemm.errors import ModelError
from sparsemm.files import atomic_path, write_json

UPDATES, BASE = "updates.safetensors", "base.json"
SCALE = 2.0  # scale of a low-rank update: W + SCALE * up @ down
FROM_BASE = ("tokenizer.json",)


def write_updates(folder: Path, pin: Pin, model: Any, processor: Any, parameters: Mapping[str, torch.Tensor]) -> None:
    """Writes a folder of updates.

    Args:
        folder: folder to write.
        pin: pin of the base.
        model, processor: model and processor whose configs are written.
        parameters: trained parameters by their names in the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in parameters.items()}
    with atomic_path(folder / UPDATES) as temporary:
        save_file(tensors, temporary, {"format": "pt"})
    write_json(folder / BASE, asdict(pin))
    model.config.architectures = [type(model).__name__]
    model.config.dtype = "float32"
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    for name in FROM_BASE:
        (folder / name).unlink(missing_ok=True)


def read_pin(folder: Path) -> Pin:
    """Reads the pin of the base from a folder of updates. Raises ModelError if base.json is missing or malformed."""
    try:
        fields = json.loads((folder / BASE).read_text(encoding="utf-8"))
        return Pin(**fields | {"tokens": tuple(fields.get("tokens", Pin.tokens))})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{BASE} cannot be read: {error}", where=str(folder)) from error


def load_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Loads the tensors of a folder of updates, bf16.

    Raises ModelError if the file is missing or not a safetensors file.
    """
    try:
        with safe_open(folder / UPDATES, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{UPDATES} cannot be read: {error}", where=str(folder)) from error


def read_updates(folder: Path, parameters: Mapping[str, torch.Tensor]) -> None:
    """Copies the updates of a folder into `parameters` of the same names and shapes.

    Raises ModelError if names or shapes differ, as they do for another rank.
    """
    tensors = load_tensors(folder)
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    different = {name: tuple(value.shape) for name, value in tensors.items()}.items() ^ shapes.items()
    if different:
        what = f"its updates do not fit the model: {sorted(different)[0][0]}"
        raise ModelError(what, where=str(folder), hint="use the same architecture and rank")
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(tensors[name])
