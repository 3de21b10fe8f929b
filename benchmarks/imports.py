"""The import graph of this repository's packages, read from the source with ast: nothing is imported.

An import counts wherever it stands, also inside a function, since a circle that a function hides is still one. Imports
under `if TYPE_CHECKING` are never run and are kept apart. Importing a package's module runs the package's `__init__.py`
first; that is no import of the author's and does not count. Modules whose names are put together at run time (one
per method, family or study) are not seen.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sparsemm", "flows", "examples", "benchmarks")

Graph = dict[str, set[str]]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of `PACKAGES` under its dotted name; a package stands for its `__init__.py`."""
    files = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    dotted = {path: path.relative_to(root).with_suffix("").parts for path in files}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in dotted.items()}


def imports(path: Path, name: str, types: bool) -> Iterator[str]:
    """Dotted names that a file imports: modules, and `module.attribute` for what is taken from one.

    Args:
        path, name: the file and its module's name, which relative imports start from.
        types: whether imports under `if TYPE_CHECKING` count too.
    """
    pending: list[ast.AST] = [ast.parse(path.read_bytes())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") and not types:
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def import_graph(types: bool = False, root: Path = ROOT) -> Graph:
    """Which modules each module imports, inside functions included; with `types` also under `if TYPE_CHECKING`."""
    known = modules(root)
    graph: Graph = {}
    for name, path in known.items():
        targets = imports(path, name, types)
        graph[name] = {t if t in known else t.rpartition(".")[0] for t in targets} & known.keys() - {name}
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """Groups of modules that all import each other, directly or through others: each sorted, all sorted."""
    reach: Graph = {}
    for name in graph:
        pending, reach[name] = [*graph[name]], set[str]()
        while pending:
            if (other := pending.pop()) not in reach[name]:
                reach[name].add(other)
                pending += graph[other]
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph}
    return sorted(sorted(group) for group in groups if group)
