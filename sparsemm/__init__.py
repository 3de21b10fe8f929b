"""SparseMM: which attention heads of a multimodal LLM look at the image, and how small the KV cache can be."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
PUBLIC = {  # name: the module that has it, imported when it is first used, because it needs torch
    "ScoreTable": "sparsemm.scores",
    "allocate_budgets": "sparsemm.allocate",
    "cache_argument": "sparsemm.compat",
    "compressed_cache": "sparsemm.cache",
    "evaluate_methods": "sparsemm.evaluate.methods",
    "load_scores": "sparsemm.registry.lookup",
    "score_heads": "sparsemm.chase.score_heads",
}
__all__ = [*PUBLIC]


def __getattr__(name: str) -> Any:
    """Returns a public function or class by its name."""
    if name not in PUBLIC:
        raise AttributeError(f"module 'sparsemm' has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    """Returns the names that `dir(sparsemm)` and completion show."""
    return sorted([*globals(), *__all__])
