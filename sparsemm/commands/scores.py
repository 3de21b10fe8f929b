"""`sparsemm scores`: shows, compares, exports and imports score tables."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sparsemm.commands import Commands, command, group
from sparsemm.errors import ScoreTableError
from sparsemm.params import load_params

if TYPE_CHECKING:
    from sparsemm.scores import ScoreTable

TABLE = "artifacts/scores/tiny-qwen2-vl.safetensors"


def add(commands: Commands) -> None:
    """Adds `scores show`, `scores diff`, `scores export` and `scores import`."""
    scores = group(commands, "scores", "score tables", f"show {TABLE}")
    show = command(scores, "show", run_show, "top heads, shares, reliability", f"scores show {TABLE}")
    show.add_argument("table", type=Path, help="model key, or a file such as artifacts/scores/KEY.safetensors")
    example = f"scores diff {TABLE} artifacts/scores/tiny-llava-next-vicuna.safetensors"
    diff = command(scores, "diff", run_diff, "rank correlation and overlap of two tables", example)
    diff.add_argument("table", type=Path, help="first table: model key or file")
    diff.add_argument("other", type=Path, help="second table, with as many layers and heads")
    text = 'write the published JSON form {"layer-head": [..]}'
    export = command(scores, "export", run_export, text, f"scores export {TABLE} heads.json")
    export.add_argument("table", type=Path, help="model key or file")
    export.add_argument("output", type=Path, help="JSON file to write")
    text = "read the published JSON form as the table of a model in params.yaml"
    example = "scores import heads.json tiny-qwen2-vl imported.safetensors"
    imported = command(scores, "import", run_import, text, example)
    imported.add_argument("source", type=Path, help="JSON file in the published form")
    imported.add_argument("key", help="model key")
    imported.add_argument("output", type=Path, help="table to write")


def _load(table: Path, root: Path) -> ScoreTable:
    """Loads a table that is named by its file or by a model key."""
    from sparsemm.scores import ScoreTable

    stored = root / "artifacts" / "scores" / f"{table}.safetensors"
    if table.exists() or len(table.parts) != 1 or table.suffix == ".safetensors":
        return ScoreTable.load(table)
    if not stored.is_file():
        keys = sorted(path.stem for path in stored.parent.glob("*.safetensors"))
        hint = f"known keys: {', '.join(keys)}" if keys else "run `dvc repro` first"
        raise ScoreTableError(f"no score table of a model {str(table)!r}", where=str(stored.parent), hint=hint)
    return ScoreTable.load(stored)


def run_show(args: argparse.Namespace) -> None:
    """Prints one table."""
    from sparsemm.scores import show

    print(show(_load(args.table, args.root)))


def run_diff(args: argparse.Namespace) -> None:
    """Prints how well two tables agree."""
    from sparsemm.scores import diff

    print(diff(_load(args.table, args.root), _load(args.other, args.root)))


def run_export(args: argparse.Namespace) -> None:
    """Writes a table in the published JSON form."""
    from sparsemm.scores import export_published

    export_published(_load(args.table, args.root), args.output)
    print(f"wrote {args.output}")


def run_import(args: argparse.Namespace) -> None:
    """Reads the published JSON form and writes it as a table."""
    from sparsemm.models import imported_header
    from sparsemm.scores import import_published

    header = imported_header(load_params(args.params).model(args.key))
    import_published(args.source, header).save(args.output)
    print(f"wrote {args.output}")
