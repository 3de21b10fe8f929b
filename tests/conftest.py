"""Shared fixtures: the small models, trained where a checkpoint is in the repository, random otherwise."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from sparsemm.compat import define_missing_torchvision_operators
from tests.repository import Repository, copy_repository, make_template

define_missing_torchvision_operators()  # before any test module imports transformers
CHECKPOINTS = Path(__file__).parent.parent / "data" / "checkpoints"


@lru_cache(maxsize=8)
def _load(name: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from sparsemm.training.architectures import build

    folder = CHECKPOINTS / name
    if not (folder / "model.safetensors").is_file():
        return build(name)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoProcessor.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], tuple[Any, Any]]:
    """`tiny(name) -> (model in fp32, processor)`, loaded once per session."""
    return _load


@pytest.fixture(scope="session")
def repository_template(tmp_path_factory) -> Path:
    """What `repository` copies."""
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def repository(repository_template, tmp_path, monkeypatch) -> Repository:
    """A repository of two models whose stages a stand-in makes; nothing has run yet."""
    return copy_repository(repository_template, tmp_path, monkeypatch)
