"""The subcommands of `sparsemm`. Each file holds a group: `add` declares its options, `run_...` runs a command."""

from __future__ import annotations

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def group(commands: Commands, name: str, text: str, example: str) -> Commands:
    """Adds a command whose first argument is an action, and returns its actions. Its help ends with the example."""
    parser = commands.add_parser(name, help=text, epilog=f"example: sparsemm {name} {example}")
    return parser.add_subparsers(dest="action", required=True, metavar="action")
