"""Tests of the vLLM plug-in; those that start an engine are skipped where vLLM is not installed (`make vllm`)."""

from __future__ import annotations

import importlib.util
import os

import pytest

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()  # the stand-in for a CUDA device has no site-packages of vLLM's environment
ENGINES = ("test_answers.py", "test_cuda.py", "test_engine.py", "test_metrics.py", "test_server.py")
collect_ignore = [] if importlib.util.find_spec("vllm") else list(ENGINES)


@pytest.fixture(scope="session", autouse=True)
def folder(tmp_path_factory):
    """Where changed checkpoints lie."""
    path = tmp_path_factory.mktemp("checkpoints")
    os.environ["SPARSEMM_TEST_FOLDER"] = str(path)
    return path
