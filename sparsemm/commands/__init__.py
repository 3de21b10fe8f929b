"""The subcommands of `sparsemm`: one file per group, each with `add` (its options) and functions that run them."""

from __future__ import annotations

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def group(commands: Commands, name: str, text: str) -> Commands:
    """A command whose first argument is an action."""
    return commands.add_parser(name, help=text).add_subparsers(dest="action", required=True, metavar="action")
