"""Read by every Python process that has this folder on its path: torch gets the stand-in as soon as it is imported."""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


class _AfterTorch(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        if spec is None or spec.loader is None:
            return spec
        usual = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            ctypes.CDLL(os.environ["CUDA_STAND_IN"])  # before torch looks for a device
            usual(module)
            sys.path.append(str(Path(__file__).parents[1]))
            try:
                from torch_cuda import install
            finally:
                sys.path.pop()
            install()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "CUDA_STAND_IN" in os.environ:
    sys.meta_path.insert(0, _AfterTorch())
