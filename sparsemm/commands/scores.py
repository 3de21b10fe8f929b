"""`sparsemm scores`: shows, compares, exports and imports score tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparsemm.commands import Commands, group
from sparsemm.params import load_params

TABLE = "artifacts/scores/tiny-qwen2-vl.safetensors"


def add(commands: Commands) -> None:
    """Adds `scores show`, `scores diff`, `scores export` and `scores import`."""
    scores = group(commands, "scores", "score tables", f"show {TABLE}")
    show = scores.add_parser(
        "show", help="top heads, shares, reliability", epilog=f"example: sparsemm scores show {TABLE}"
    )
    show.add_argument("table", type=Path, help="artifacts/scores/KEY.safetensors")
    show.set_defaults(run=run_show)
    diff = scores.add_parser(
        "diff",
        help="rank correlation and overlap of two tables",
        epilog=f"example: sparsemm scores diff {TABLE} artifacts/scores/tiny-llava-next-vicuna.safetensors",
    )
    diff.add_argument("table", type=Path, help="first table")
    diff.add_argument("other", type=Path, help="second table, with as many layers and heads")
    diff.set_defaults(run=run_diff)
    export = scores.add_parser(
        "export",
        help='write the published JSON form {"layer-head": [..]}',
        epilog=f"example: sparsemm scores export {TABLE} heads.json",
    )
    export.add_argument("table", type=Path, help="artifacts/scores/KEY.safetensors")
    export.add_argument("output", type=Path, help="JSON file to write")
    export.set_defaults(run=run_export)
    imported = scores.add_parser(
        "import",
        help="read the published JSON form as the table of a model in params.yaml",
        epilog="example: sparsemm scores import heads.json tiny-qwen2-vl imported.safetensors",
    )
    imported.add_argument("source", type=Path, help="JSON file in the published form")
    imported.add_argument("key", help="model key")
    imported.add_argument("output", type=Path, help="table to write")
    imported.set_defaults(run=run_import)


def run_show(args: argparse.Namespace) -> None:
    """Prints one table."""
    from sparsemm.scores import ScoreTable, show

    print(show(ScoreTable.load(args.table)))


def run_diff(args: argparse.Namespace) -> None:
    """Prints how well two tables agree."""
    from sparsemm.scores import ScoreTable, diff

    print(diff(ScoreTable.load(args.table), ScoreTable.load(args.other)))


def run_export(args: argparse.Namespace) -> None:
    """Writes a table in the published JSON form."""
    from sparsemm.scores import ScoreTable, export_published

    export_published(ScoreTable.load(args.table), args.output)
    print(f"wrote {args.output}")


def run_import(args: argparse.Namespace) -> None:
    """Reads the published JSON form and writes it as a table."""
    from sparsemm.models import imported_header
    from sparsemm.scores import import_published

    header = imported_header(load_params(args.params).model(args.key))
    import_published(args.source, header).save(args.output)
    print(f"wrote {args.output}")
