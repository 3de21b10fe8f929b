"""Every tensor names its dtype and device: torch's defaults belong to whoever set them last, in any thread."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FACTORIES = set(
    "arange as_tensor asarray empty empty_strided eye full hamming_window hann_window linspace logspace normal ones "
    "rand randint randn randperm range scalar_tensor tensor tril_indices triu_indices zeros".split()
)
MODULES = {"Conv1d", "Conv2d", "Embedding", "LayerNorm", "Linear", "RMSNorm"}
LEGACY = {"Tensor", "FloatTensor", "DoubleTensor", "HalfTensor", "LongTensor", "IntTensor", "BoolTensor"}


def unnamed(source: str) -> list[tuple[int, str]]:
    """(line, what is missing) of every allocation that leaves its dtype or device to torch's defaults.

    `tensor.new_zeros(...)` and `torch.zeros_like(...)` take both from a tensor.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            found += [(node.lineno, f"torch.{a.name}") for a in node.names if a.name in FACTORIES | LEGACY]
        if not isinstance(node, ast.Call):
            continue
        name, named = ast.unparse(node.func), {keyword.arg for keyword in node.keywords}
        module, _, last = name.rpartition(".")
        wanted: set[str] = set()
        if module == "torch" and last in FACTORIES:
            wanted = {"dtype", "device"}
        elif module in ("nn", "torch.nn") and last in MODULES:
            wanted = {"dtype"}
        elif (module == "torch" and last in LEGACY) or (name == "torch.finfo" and not node.args):
            wanted = {"a factory with a dtype"}
        elif name == "torch.where" and sum(isinstance(one, ast.Constant) for one in node.args) == 2:
            wanted = {"a tensor of the dtype that is meant"}
        if missing := sorted(wanted - named):
            found.append((node.lineno, f"{name}: {', '.join(missing)}"))
    return found


@pytest.mark.parametrize("folder", ["sparsemm", "examples", "benchmarks"])
def test_every_allocation_names_its_dtype_and_device(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    found = [f"{path.relative_to(ROOT)}:{line}: {what}" for path in files for line, what in unnamed(path.read_text())]
    assert files and found == []


@pytest.mark.parametrize(
    ("call", "missing"),
    [
        ("torch.empty(3)", "torch.empty: device, dtype"),
        ("torch.tensor(0.5, device='cpu')", "torch.tensor: dtype"),
        ("torch.arange(3, dtype=torch.int64)", "torch.arange: device"),
        ("torch.where(mask, 0.0, 1.0)", "torch.where: a tensor of the dtype that is meant"),
        ("torch.finfo().max", "torch.finfo: a factory with a dtype"),
        ("torch.FloatTensor(3)", "torch.FloatTensor: a factory with a dtype"),
        ("nn.Linear(2, 3)", "nn.Linear: dtype"),
        ("from torch import zeros", "torch.zeros"),
        ("torch.zeros(3, dtype=torch.float32, device='cpu') + x.new_zeros(3) + torch.zeros_like(x)", None),
    ],
)
def test_what_is_found(call, missing):
    assert unnamed(call) == ([] if missing is None else [(1, missing)])
