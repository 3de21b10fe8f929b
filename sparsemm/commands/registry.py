"""`sparsemm publish|promote|rollback|lookup|registry`: manages results and champions in MLflow."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from sparsemm.commands import Commands, command, group
from sparsemm.errors import RegistryError
from sparsemm.params import load_params
from sparsemm.registry.client import PORT, sqlite_file

if TYPE_CHECKING:
    from sparsemm.registry.lookup import VersionedTable


def add(commands: Commands) -> None:
    """Adds the commands that use the registry, and `registry serve`."""
    text = "publish a model's results in the registry, once"
    publish = command(commands, "publish", run_publish, text, "publish tiny-qwen2-vl")
    publish.add_argument("key", help="model key")
    publish.add_argument("--flow-run", help="id of the flow run, for provenance")
    text = "make a version the candidate, or the champion if it passes the gate"
    promote = command(commands, "promote", run_promote, text, "promote tiny-qwen2-vl --to champion")
    promote.add_argument("key", help="model key")
    promote.add_argument("--to", choices=("candidate", "champion"), required=True)
    promote.add_argument("--version", help="version number (the candidate)")
    text = "make the previous champion champion again"
    rollback = command(commands, "rollback", run_rollback, text, "rollback tiny-qwen2-vl")
    rollback.add_argument("key", help="model key")
    example = "lookup models:/visual-heads.tiny-qwen2-vl@champion --json"
    lookup = command(commands, "lookup", run_lookup, "find a score table and check it", example)
    lookup.add_argument("source", help="path, models:/visual-heads.<key>@champion or models:/visual-heads.<key>/3")
    lookup.add_argument("--json", action="store_true", help="everything, for other programs")
    lookup.add_argument("--offline", action="store_true", help="ask the cache only")
    serve = command(
        group(commands, "registry", "the registry", "serve --port 5000"),
        "serve",
        run_serve,
        "an MLflow server with safe settings",
        "registry serve --port 5000",
        description="Start an MLflow server with safe settings, over the store that `publish` uses by default.",
    )
    serve.add_argument("--port", type=_port, default=PORT, help=f"port ({PORT})")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on; any but loopback needs --auth")
    serve.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name by which other hosts address the server; may be repeated (private addresses)",
    )
    serve.add_argument("--store", help="database URI ($MLFLOW_BACKEND_STORE_URI, or SQLite in artifacts/registry)")
    serve.add_argument("--artifacts", help="folder or s3:// address of the files (beside the database)")
    serve.add_argument("--auth", action="store_true", help="basic auth; password from $MLFLOW_AUTH_ADMIN_PASSWORD")


def _port(text: str) -> int:
    if not 1 <= (number := int(text)) <= 65535:
        raise argparse.ArgumentTypeError("1 to 65535")
    return number


def run_publish(args: argparse.Namespace) -> None:
    """Publishes a model's results, unless they were published before, and prints where."""
    from sparsemm.registry.publish import publish

    version = publish(load_params(args.params), args.key, args.root, flow_run=args.flow_run)
    print(f"{version.name} version {version.version}: {'published' if version.created else 'was published before'}")
    print(f"registry: {version.uri}")
    print(f"page: {version.page}" + (" (after `sparsemm registry serve`)" if sqlite_file(version.uri) else ""))


def run_promote(args: argparse.Namespace) -> None:
    """Points an alias at a version; `champion` only if the version passes the gate."""
    from sparsemm.registry.promote import promote

    _show(promote(load_params(args.params), args.key, args.root, to=args.to, version=args.version), args.to)


def run_rollback(args: argparse.Namespace) -> None:
    """Makes the previous champion champion again."""
    from sparsemm.registry.promote import rollback

    _show(rollback(load_params(args.params), args.key, args.root), "champion")


def _show(promotion: Any, alias: str) -> None:
    for reason in promotion.verdict.reasons if promotion.verdict else ():
        print(reason)
    if promotion.verdict is not None and not promotion.verdict.passed:
        raise RegistryError(f"version {promotion.version} did not pass the gate", where=promotion.name)
    print(f"{promotion.name}: {alias} is version {promotion.version}, before {promotion.before or 'none'}")


def look_up_source(source: str, args: argparse.Namespace, offline: bool = False) -> VersionedTable:
    """Returns the score table of a path or an address, in the registry that `publish` uses."""
    from sparsemm.registry.client import registry_uri
    from sparsemm.registry.lookup import is_address, look_up

    uri = None
    if is_address(source):  # another host may have no params.yaml
        uri = registry_uri(None, load_params(args.params) if args.params.exists() else None, args.root)
    return look_up(source, tracking_uri=uri, offline=offline)


def run_lookup(args: argparse.Namespace) -> None:
    """Finds a score table, checks it and prints its description."""
    from sparsemm.registry.lookup import describe

    description = describe(look_up_source(args.source, args, args.offline))
    if args.json:
        print(json.dumps(description))
    else:
        description["recipe"] = description["recipe"] and {
            scenario: choice["name"] for scenario, choice in description["recipe"]["scenarios"].items()
        }
        print("\n".join(f"{name}: {value}" for name, value in description.items() if name != "scores"))


def run_serve(args: argparse.Namespace) -> None:
    """Runs the registry's server until it is stopped."""
    from sparsemm.registry.server import serve

    options = {"store": args.store, "artifacts": args.artifacts, "auth": args.auth, "host": args.host}
    serve(args.root, args.port, **options, names=args.allow_host)
