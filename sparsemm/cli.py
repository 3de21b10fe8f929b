"""The command `sparsemm`: parses the arguments and runs a subcommand."""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from sparsemm import __version__
from sparsemm.commands import backup, bench, doctor, group, models, plan_memory, recipe, registry, scores, stages
from sparsemm.errors import PipelineError, SparseMMError
from sparsemm.params import load_params, schema


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparsemm", description="Visual heads and KV-cache budgets.", epilog="example: sparsemm doctor"
    )
    parser.add_argument("--version", action="version", version=f"sparsemm {__version__}")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="params file (params.yaml)")
    parser.add_argument("--root", type=Path, default=Path("."), help="folder that holds artifacts/ (here)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for module in (stages, models, scores, recipe, bench, plan_memory, registry, backup, doctor):
        module.add(commands)
    flows = group(commands, "flows", "Prefect flows", "deploy --slots 4")
    flows.add_parser(
        "deploy", add_help=False, help="make pools, limits and automations, and deploy; `deploy --help` lists options"
    )
    params = commands.add_parser("params", help="check params.yaml", epilog="example: sparsemm params --schema")
    params.add_argument("--schema", action="store_true", help="print its JSON schema")
    params.set_defaults(run=_params)
    return parser


def _params(args: argparse.Namespace) -> None:
    if args.schema:
        print(json.dumps(schema(), indent=2))
    else:
        params = load_params(args.params)
        params.check_folders(params.models.keys() - params.assembled.keys(), str(args.params))
        print(f"{args.params} is valid")


def _deploy(root: Path, options: list[str]) -> int:
    """Runs the repository's flows.deploy in a process of its own, because the package never imports `flows`."""
    if not (root / "flows" / "deploy.py").is_file():
        raise PipelineError("no flows/deploy.py", where=str(root), hint="run from the repository root")
    return subprocess.run([sys.executable, "-m", "flows.deploy", *options], cwd=root, check=False).returncode


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, or 1 after printing what is wrong and what to do."""
    args, rest = _parser().parse_known_args(arguments)
    deploys = args.command == "flows"
    if rest and not deploys:
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if deploys:
            return _deploy(args.root, rest)
        args.run(args)
    except SparseMMError as error:
        print(f"sparsemm: {error}", file=sys.stderr)
        return 1
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        if error.filename is None:
            raise
        print(f"sparsemm: {error.filename2 or error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sparsemm: stopped; run the same command again to resume", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    return 0


def command() -> NoReturn:
    """Runs `main` as a process that collects garbage less often.

    torch and transformers create a million lasting objects. Searching them again and again takes a large part of the
    time of a short stage.
    """
    gc.set_threshold(50_000)
    code = main()
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader is gone; without this, Python would write again when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


if __name__ == "__main__":
    command()
