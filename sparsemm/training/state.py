"""Saves and loads the state of a training as one safetensors file, without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sparsemm.errors import ModelError
from sparsemm.files import atomic_path


def save_state(
    path: Path, parameters: Mapping[str, nn.Parameter], optimizers: list[torch.optim.Optimizer], meta: dict[str, Any]
) -> None:
    """Writes named parameters, optimizer states and `meta` (JSON values) atomically."""
    tensors = {name: value.detach() for name, value in parameters.items()}
    for number, optimizer in enumerate(optimizers):
        for index, entry in optimizer.state_dict()["state"].items():
            for key, value in entry.items():
                if not torch.is_tensor(value):
                    value = torch.tensor(value, dtype=torch.float32, device="cpu")
                tensors[f"optimizer{number}/{index}/{key}"] = value
    with atomic_path(path) as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, {"meta": json.dumps(meta)})


def load_state(
    path: Path, parameters: Mapping[str, nn.Parameter], optimizers: list[torch.optim.Optimizer]
) -> dict[str, Any]:
    """Loads parameters and optimizer states that `save_state` wrote, and returns `meta`.

    Raises ModelError if the file lacks a parameter, as that of another model does.
    """
    states: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in optimizers]
    with safe_open(path, "pt") as file, torch.no_grad():
        keys = set(file.keys())
        for name, value in parameters.items():
            if name not in keys:
                raise ModelError(f"parameter {name} is missing", where=str(path), hint="delete the file to start again")
            value.copy_(file.get_tensor(name))
        for full in keys:
            group, _, rest = full.partition("/")
            if group.startswith("optimizer"):
                index, key = rest.split("/")
                states[int(group.removeprefix("optimizer"))].setdefault(int(index), {})[key] = file.get_tensor(full)
        meta: dict[str, Any] = json.loads(file.metadata()["meta"])
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return meta
