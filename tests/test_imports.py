"""The core needs torch, transformers, numpy, safetensors, pillow, pydantic and pyyaml, and no module imports itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.imports import circles, import_graph

PACKAGE = Path(__file__).parent.parent / "sparsemm"
ALLOWED = {"torch", "torchvision", "transformers", "tokenizers", "numpy", "safetensors", "PIL", "pydantic", "yaml"}
ALLOWED |= {"fsspec", "tqdm"}  # which huggingface_hub needs, and transformers needs that
EXTRAS = ("evaluate", "report")  # folders of stages that need lmms-eval and plotly
# The layers of docs/design.md, lowest first, by the first name below `sparsemm`; and the imports that point up.
LAYERS = (
    "__init__ errors files compat statistics tables progress processes published",
    "budgets scores recipes models prompts layouts params fetch suggestions",
    "ops",
    "policies",
    "attention_probe",
    "cache",
    "align chase allocate assemble datasets training",
    "evaluate profiling studies tune dependencies inputs",
    "registry pipeline watch doctor vllm backup",
    "report explorer",
    "commands cli",
)
UPWARD = {
    ("sparsemm.align.stage", "sparsemm.dependencies"): "half-done work is known by the code it depends on",
    ("sparsemm.chase.sharded", "sparsemm.dependencies"): "half-done work is known by the code it depends on",
    ("sparsemm.chase.workers", "sparsemm.pipeline.gpus"): "a worker takes a GPU by the same locks as a job",
    ("sparsemm.evaluate.plugin", "sparsemm.registry.lookup"): "lmms-eval's command line may name a published table",
    ("sparsemm.models", "sparsemm.cache.served"): "a checkpoint that no cache could serve is refused when it is added",
    ("sparsemm.params.stages", "sparsemm.policies"): "the names of the methods; no torch",
    ("sparsemm.suggestions", "sparsemm.cache.served"): "which layers hold keys and values",
    ("sparsemm.suggestions", "sparsemm.policies"): "how many answers an evaluation asks for",
    ("sparsemm.params.tune", "sparsemm.policies"): "the names of the methods; no torch",
    ("sparsemm.training.card", "sparsemm.evaluate.tasks.functions"): "a card measures what evaluation measures",
}
VLLM = {
    PACKAGE / "vllm" / f"{name}.py"
    for name in ("backend", "connect", "cpu", "cuda", "manager", "metrics", "spec", "worker")
}
CORE = [p for p in sorted(PACKAGE.rglob("*.py")) if p.relative_to(PACKAGE).parts[0] not in EXTRAS and p not in VLLM]


def top_level_imports(path):
    """Roots of the modules a file imports when it is imported itself."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


def test_core_modules_import_only_what_the_core_needs():
    known = ALLOWED | {"sparsemm", "__future__"} | set(sys.stdlib_module_names)
    foreign = {str(path.relative_to(PACKAGE)): set(top_level_imports(path)) - known for path in CORE}
    assert len(CORE) > 200
    assert {path: names for path, names in foreign.items() if names} == {}


@pytest.mark.parametrize("types", [False, True])
def test_no_module_imports_itself_through_others(types):
    """Neither when it runs nor for its type annotations."""
    assert circles(import_graph(types=types)) == []


def test_imports_point_down():
    rank = {name: number for number, names in enumerate(LAYERS) for name in names.split()}
    inner = {name: {*targets} for name, targets in import_graph().items() if name.startswith("sparsemm.")}
    edges = [(one, two) for one, targets in inner.items() for two in targets if two in inner]
    assert {edge for edge in edges if rank[edge[0].split(".")[1]] < rank[edge[1].split(".")[1]]} == set(UPWARD)


def test_circles_are_seen_wherever_an_import_stands(tmp_path):
    package = tmp_path / "sparsemm"
    package.mkdir()
    for name, text in {
        "__init__": "",
        "top": "import sparsemm.inner\n",
        "inner": "def late():\n    from sparsemm import top\n",
        "relative": "from .typed import Typed\n",
        "typed": "if TYPE_CHECKING:\n    from sparsemm.relative import Other\nelse:\n    import sparsemm.top\n",
        "apart": "from sparsemm import top, inner\nimport torch\n",
    }.items():
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    runtime = [["sparsemm.inner", "sparsemm.top"]]
    assert circles(import_graph(root=tmp_path)) == runtime
    assert circles(import_graph(types=True, root=tmp_path)) == [*runtime, ["sparsemm.relative", "sparsemm.typed"]]


def test_the_core_does_not_import_the_vllm_plugin():
    for path in PACKAGE.rglob("*.py"):
        if path.parent != PACKAGE / "vllm" and path.name != "plan_memory.py":  # a command, which may
            assert not re.search(r"sparsemm\.vllm|(import|from) vllm", path.read_text(encoding="utf-8")), path


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
