"""The cache's argument has the name that the installed transformers wants, everywhere in the library."""

from __future__ import annotations

import ast
import inspect
import json
import warnings
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from sparsemm import compat
from tests.test_tutorials import NOT_RUN, RUN, snippets

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


def names_the_cache(code):
    """Whether a call in the code names the argument as only old versions of transformers do."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    return any(one.arg == "past_key_values" for call in calls for one in call.keywords)


def test_neither_the_library_nor_a_document_writes_the_name_itself():
    assert names_the_cache("model.generate(past_key_values=c)")
    files = [path for folder in ("sparsemm", "examples") for path in (ROOT / folder).rglob("*.py")]
    codes = {str(path.relative_to(ROOT)): [path.read_text(encoding="utf-8")] for path in files}
    for document in RUN:
        left_out = NOT_RUN.get(document, {})
        codes[document] = [code for number, code in enumerate(snippets(document)) if number not in left_out]
    notebook = json.loads((ROOT / "examples" / "compress.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    codes["the notebook"] = ["".join(cell["source"]) for cell in cells]
    assert all(codes.values())
    assert [name for name, parts in codes.items() if any(map(names_the_cache, parts))] == []
