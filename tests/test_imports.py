"""The core needs torch, transformers, numpy, safetensors, pillow, pydantic and pyyaml, and nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sparsemm"
ALLOWED = {"torch", "torchvision", "transformers", "tokenizers", "numpy", "safetensors", "PIL", "pydantic", "yaml"}
EXTRAS = ("evaluate", "report")  # folders of stages that need lmms-eval and plotly
CORE = [p for p in sorted(PACKAGE.rglob("*.py")) if p.relative_to(PACKAGE).parts[0] not in EXTRAS]


def top_level_imports(path):
    """Roots of the modules a file imports when it is imported itself."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_core_modules_import_only_what_the_core_needs(path):
    assert set(top_level_imports(path)) <= ALLOWED | {"sparsemm", "__future__"} | set(sys.stdlib_module_names)


def test_the_core_does_not_load_the_orchestrators():
    code = (
        "import sys, sparsemm, sparsemm.align.stage, sparsemm.allocate, sparsemm.chase.stage\n"
        "import sparsemm.datasets.download\n"
        "import sparsemm.registry.publish, sparsemm.registry.promote, sparsemm.registry.server\n"
        "sparsemm.compressed_cache, sparsemm.load_scores\n"
        "assert not {'prefect', 'mlflow', 'dvc', 'lmms_eval', 'plotly', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_looking_at_params_needs_no_torch():
    code = "import sys, sparsemm.cli; sparsemm.cli.main(['params', '--schema']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and '"chase"' in done.stdout
