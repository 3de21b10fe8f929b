"""`sparsemm doctor`: what this machine has, what answers, and what to do about the rest."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from sparsemm.commands import Commands
from sparsemm.errors import SparseMMError

MARKS = {"ok": "+", "absent": "-", "broken": "!"}


def add(commands: Commands) -> None:
    """`doctor`."""
    doctor = commands.add_parser(
        "doctor",
        help="look at packages, GPUs, disk, compiled operations and services, and say what to do",
        epilog="example: sparsemm doctor --json | jq '.[] | select(.status == \"broken\")'",
    )
    doctor.add_argument("--json", action="store_true", help="print a list of {name, status, detail, hint}")
    doctor.set_defaults(run=run_doctor)


def run_doctor(given: argparse.Namespace) -> None:
    """Print what was found.

    Raises:
        SparseMMError: after printing, if something is broken, so that scripts see it.
    """
    from sparsemm.doctor import examine

    found = examine(given.params, given.root)
    if given.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
    else:
        for one in found:
            print(f"{MARKS[one.status]} {one.name}: {one.detail}")
            if one.hint and one.status != "ok":
                print(f"    {one.hint}")
    broken = [one.name for one in found if one.status == "broken"]
    if broken:
        raise SparseMMError(f"{len(broken)} broken: {', '.join(broken)}", where="doctor")
