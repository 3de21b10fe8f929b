"""The subcommands of `sparsemm`. Each file holds a group: `add` declares its options, `run_...` runs a command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], None], text: str, example: str, **options: Any
) -> argparse.ArgumentParser:
    """Adds a command that calls `run`. Its help ends with the example, which is written without `sparsemm`."""
    parser = commands.add_parser(name, help=text, epilog=f"example: sparsemm {example}", **options)
    parser.set_defaults(run=run)
    return parser


def group(commands: Commands, name: str, text: str, example: str) -> Commands:
    """Adds a command whose first argument is an action, and returns its actions. Its help ends with the example."""
    parser = commands.add_parser(name, help=text, epilog=f"example: sparsemm {name} {example}")
    return parser.add_subparsers(dest="action", required=True, metavar="action")
