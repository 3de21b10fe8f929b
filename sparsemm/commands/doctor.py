"""`sparsemm doctor`: checks the machine and its services, and says how to mend what is missing or broken."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from sparsemm.commands import Commands, command
from sparsemm.errors import SparseMMError

MARKS = {"ok": "+", "absent": "-", "broken": "!"}


def add(commands: Commands) -> None:
    """Adds `doctor`."""
    text = "check packages, GPUs, disk, compiled operations and services, and say what to do"
    example = "doctor --json | jq '.[] | select(.status == \"broken\")'"
    doctor = command(commands, "doctor", run_doctor, text, example)
    doctor.add_argument("--json", action="store_true", help="print a list of {name, status, detail, hint}")


def run_doctor(args: argparse.Namespace) -> None:
    """Prints the findings.

    Raises SparseMMError after printing, if something is broken, so that a script sees the failure.
    """
    from sparsemm.doctor import examine

    findings = examine(args.params, args.root)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{MARKS[finding.status]} {finding.name}: {finding.detail}")
            if finding.hint and finding.status != "ok":
                print(f"    {finding.hint}")
    broken = [finding.name for finding in findings if finding.status == "broken"]
    if broken:
        raise SparseMMError(f"{len(broken)} broken: {', '.join(broken)}", where="doctor")
