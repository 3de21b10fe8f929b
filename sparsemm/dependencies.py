"""Which files of this repository a result depends on: what stages run again for, and what half-done work is known by.

The imports of a module are followed, also those inside functions; what cannot change a result is left out, with the
reason beside it.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from sparsemm.studies import STUDIES

ROOT = Path(__file__).resolve().parents[1]

# Modules and packages that no result depends on.
LEFT_OUT = {
    "sparsemm.commands": "how a stage is called",
    "sparsemm.compat": "lets torchvision be imported beside another build of torch, and names arguments",
    "sparsemm.dependencies": "which files are looked at",
    "sparsemm.errors": "what an error looks like",
    "sparsemm.fetch": "where bytes come from; a revision or hash says which they are",
    "sparsemm.files": "how files are written and named",
    "sparsemm.params": "values are tracked one by one, as params; tests/params/defaults.json watches the defaults",
    "sparsemm.pipeline": "where and when stages run",
    "sparsemm.processes": "how work is shared, not what is computed",
    "sparsemm.progress": "what is shown meanwhile",
}

# Imports that are not followed: the importing module, and what of its imports no result depends on.
NOT_FOLLOWED = {
    ("sparsemm.models", "sparsemm.cache.served"): "whether a cache could serve the model, which changes no answer",
    ("sparsemm.scores", "sparsemm.models"): "the fingerprint that a table is checked against",
    ("sparsemm.scores", "sparsemm.recipes"): "the recipe beside a table, which changes no score",
    ("sparsemm.cache.compressed", "sparsemm.recipes"): "what the method auto is: stages name their methods",
    ("sparsemm.evaluate.rows", "sparsemm.policies"): "the names of the methods",
    ("sparsemm.studies.common.stage", "sparsemm.studies.common.experiment"): "derived studies do not use it",
    ("sparsemm.studies.common.stage", "sparsemm.studies"): "where the file of a study is",
    ("sparsemm.report.stage", "sparsemm"): "the number of the version",
    **{(f"sparsemm.studies.{name}", "sparsemm.studies"): "the report's words, which change no row" for name in STUDIES},
}

# Packages that a module's imports reach, and that it does not use.
UNUSED = {"sparsemm.report.stage": ("sparsemm.ops",)}  # it takes the names and summaries of the methods, and runs none

# What is imported or read by a name that is put together at run time, by patterns from the root of the repository.
ALSO = {
    "sparsemm.ops.build": ("csrc/*", "sparsemm/csrc/*"),
    "sparsemm.datasets.glyphs": ("sparsemm/datasets/fonts/*",),
    "sparsemm.datasets.synthetic": ("sparsemm/datasets/fonts/*",),
    "sparsemm.evaluate.tasks.pages": ("sparsemm/evaluate/tasks/*.yaml", "sparsemm/evaluate/tasks/functions.py"),
    "sparsemm.layouts": ("sparsemm/layouts/*.py",),
    "sparsemm.policies": ("sparsemm/policies/*.py",),
    "sparsemm.published": ("sparsemm/published/*.csv",),
    "sparsemm.report.html": ("sparsemm/report/*.css", "sparsemm/report/*.js"),
    "sparsemm.report.results": ("sparsemm/report/*.csv",),
    "sparsemm.studies": ("sparsemm/studies/*.py",),
}


@cache
def dependencies(*modules: str) -> tuple[str, ...]:
    """Files that the results of these modules depend on, sorted, from the root of the repository, by "/".

    What studies import inside functions is what they run with: it counts where one of them is among the modules, but
    not for the report, which takes their words. Raises ModuleNotFoundError if there is no such module.
    """
    left_out = {*LEFT_OUT, *(one for name in modules for one in UNUSED.get(name, ()))}
    runs_study = any(_is_under(name, ("sparsemm.studies",)) for name in modules)
    pending, seen, files = list(modules), set[str](), set[str]()
    while pending:
        name = pending.pop()
        if name in seen or _is_under(name, left_out):
            continue
        seen.add(name)
        path = _path(name)
        if path is None:
            raise ModuleNotFoundError(f"no module {name!r}")
        also = [file for pattern in ALSO.get(name, ()) for file in ROOT.glob(pattern) if file.is_file()]
        files.update(file.relative_to(ROOT).as_posix() for file in (path, *also))
        pending += [_module(file) for file in also if file.suffix == ".py"]
        inner = runs_study or not _is_under(name, ("sparsemm.studies",))
        pending += [other for other in _imports(name, inner) if (name, other) not in NOT_FOLLOWED]
    return tuple(sorted(files))


@cache
def _imports(name: str, inner: bool) -> frozenset[str]:
    return frozenset(imports(name, inner))


def imports(name: str, inner: bool = True) -> Iterator[str]:
    """Modules of this package that a module takes something from, wherever in its file; types alone do not count.

    With `inner` false, what is imported inside functions does not count either.

    Of `from package import module` it is the module; a package counts where something of its own is taken.
    """
    path = _path(name)
    pending: list[ast.AST] = [_tree(path)] if path else []
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending += node.orelse
            continue
        if not inner and isinstance(node, ast.FunctionDef):
            continue
        pending += _statements(node)
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if _path(one.name))
        elif isinstance(node, ast.ImportFrom) and _path(node.module or ""):
            names = [f"{node.module}.{one.name}" for one in node.names]
            yield from (one if _path(one) else str(node.module) for one in names)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """What is directly below a node, without expressions: most of a tree, and without imports or definitions."""
    return (one for one in ast.iter_child_nodes(node) if not isinstance(one, ast.expr))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


def identity(parts: Any, *modules: str) -> str:
    """Name of half-done work: of `parts` (JSON), and of what the code that these modules depend on does.

    Partial results of other settings or code are never resumed. Comments and docstrings of Python do not count.
    """
    text = json.dumps([parts, digests(*modules)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digests(*modules: str) -> dict[str, str]:
    """File -> the first 16 hex digits of its SHA-256, for every file that the results of these modules depend on.

    Of Python files comments and docstrings do not count, on any version of Python.
    """
    return {name: _digest(name) for name in dependencies(*modules)}


@cache
def _digest(name: str) -> str:
    content = (ROOT / name).read_bytes()
    if name.endswith(".py"):
        content = without_comments(content.decode()).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def without_comments(source: str) -> str:
    """Python source without comments, docstrings and empty lines between statements.

    It is cut from the text, since how syntax trees are printed differs between versions of Python.
    """
    lines = source.split("\n")
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    cut = [(token.start, token.end) for token in tokens if token.type == tokenize.COMMENT]
    cut += [_span(text, lines) for text in _docstrings(ast.parse(source))]
    touched = {token.start[0] for token in tokens if token.type == tokenize.NL}  # empty lines outside of strings
    for (first, start), (last, end) in sorted(cut, reverse=True):
        rest = lines[first - 1][:start] + lines[last - 1][end:]
        lines[first - 1 : last] = [rest] + [""] * (last - first)
        touched.update(range(first, last + 1))
    kept = ((number, line) for number, line in enumerate(lines, 1) if number not in touched or line.strip())
    return "\n".join(line.rstrip() if number in touched else line for number, line in kept)


def _docstrings(tree: ast.AST) -> Iterator[ast.expr]:
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        pending += _statements(node)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body[:1]:
                case [ast.Expr(value=ast.Constant(value=str()) as text)]:
                    yield text


def _span(node: ast.expr, lines: list[str]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Line and column (of characters, as tokens have it) where a node begins and ends."""
    first, last = node.lineno, node.end_lineno or node.lineno
    start = lines[first - 1].encode()[: node.col_offset].decode()
    end = lines[last - 1].encode()[: node.end_col_offset].decode()
    return (first, len(start)), (last, len(end))


def _is_under(name: str, packages: Any) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in packages)


def _path(name: str) -> Path | None:
    """The file of a module of this package, or None."""
    if not _is_under(name, ("sparsemm",)):
        return None
    stem = ROOT.joinpath(*name.split("."))
    return next((path for path in (stem / "__init__.py", stem.with_suffix(".py")) if path.is_file()), None)


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
