"""`sparsemm backup`: copies the registry, Prefect's database and DVC's cache, and puts them back."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparsemm.backup import PARTS, create, restore
from sparsemm.commands import Commands, command, group


def add(commands: Commands) -> None:
    """Adds `backup create` and `backup restore`."""
    actions = group(commands, "backup", "registry, Prefect's database and DVC's cache", "create /backups/today")
    example = "backup create /backups/today --part registry --part prefect"
    new = command(actions, "create", run_create, "copy them into a new folder, while the servers run", example)
    new.add_argument("folder", type=Path, help="folder to create")
    new.add_argument("--part", action="append", choices=PARTS, help="only this part; may be repeated (all)")
    text = "check a backup and put it back, while the servers are stopped"
    old = command(actions, "restore", run_restore, text, "backup restore /backups/today")
    old.add_argument("folder", type=Path, help="folder that `backup create` made")


def run_create(args: argparse.Namespace) -> None:
    """Creates a backup."""
    counts = create(args.root, args.folder, tuple(args.part or PARTS))
    print(f"{args.folder}: {_counted(counts)}")


def run_restore(args: argparse.Namespace) -> None:
    """Restores a backup."""
    print(f"restored {_counted(restore(args.root, args.folder))}")


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{part} ({count} files)" for part, count in counts.items())
