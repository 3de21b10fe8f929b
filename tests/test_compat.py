"""The cache's argument has the name that the installed transformers wants, everywhere in the library."""

from __future__ import annotations

import ast
import inspect
import warnings
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from sparsemm import compat

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("version", "name"),
    [("5.17.0", "past_key_values"), ("5.23.1", "past_key_values"), ("5.24.0", "cache"), ("6.0", "cache")],
)
def test_the_name_follows_the_version(monkeypatch, version, name):
    monkeypatch.setattr(compat, "version", lambda package: version)
    monkeypatch.setattr(compat, "_cache_name", compat._cache_name.__wrapped__)
    assert compat.cache_argument("a cache") == {name: "a cache"}


def test_the_installed_transformers_takes_it_without_a_warning(tiny):
    model, _ = tiny("tiny-qwen2-vl")
    tokens, cache = torch.ones((1, 3), dtype=torch.int64), DynamicCache()
    assert compat._cache_name() in inspect.signature(model.forward).parameters
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(tokens, **compat.cache_argument(cache))
        model.generate(tokens, **compat.cache_argument(DynamicCache()), max_new_tokens=1)
    assert cache.get_seq_length() == 3


def test_the_library_never_writes_the_name_itself():
    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in ("sparsemm", "examples")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and any(one.arg == "past_key_values" for one in node.keywords)
    ]
    assert calls == []
