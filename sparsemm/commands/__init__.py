"""The subcommands of `sparsemm`: one file per group, each with `add` (its options) and functions that run them."""

from __future__ import annotations

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def group(commands: Commands, name: str, text: str, example: str) -> Commands:
    """A command whose first argument is an action; its help ends with the example."""
    parser = commands.add_parser(name, help=text, epilog=f"example: sparsemm {name} {example}")
    return parser.add_subparsers(dest="action", required=True, metavar="action")
