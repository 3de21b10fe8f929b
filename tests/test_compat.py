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


LIGHT = "from transformers import StoppingCriteria"  # reads no module that needs torchvision
DEFINE = "define_missing_torchvision_operators()"


def is_prepared(path):
    """Whether torchvision's operators are defined when a file imports transformers: above it there, or in a package."""
    source = path.read_text(encoding="utf-8")
    nodes = [node for node in ast.parse(source).body if ast.unparse(node).startswith("from transformers")]
    imports = [node.lineno for node in nodes if not ast.unparse(node).startswith(LIGHT)]
    packages = [folder / "__init__.py" for folder in path.parents if folder.is_relative_to(ROOT) and folder != ROOT]
    texts = [one.read_text(encoding="utf-8") for one in packages if one.is_file()]
    before = source.splitlines()[: imports[0]] if imports else [DEFINE]
    return any(line.strip() == DEFINE for line in before + [line for text in texts for line in text.splitlines()])


def test_every_module_can_be_the_first_that_is_imported():
    """Of those that import transformers: without the operators it cannot import a torchvision that does not fit."""
    folders = ("sparsemm", "flows", "examples", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert files and [str(path.relative_to(ROOT)) for path in files if not is_prepared(path)] == []
