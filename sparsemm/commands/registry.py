"""`sparsemm publish|promote|rollback|lookup|registry`: results and champions in MLflow."""

from __future__ import annotations

import argparse
import json
from typing import Any

from sparsemm.commands import Commands, group
from sparsemm.errors import RegistryError
from sparsemm.params import load_params


def add(commands: Commands) -> None:
    """What talks to the registry, and the registry itself."""
    publish = commands.add_parser(
        "publish",
        help="publish a model's results in the registry, once",
        epilog="example: sparsemm publish tiny-qwen2-vl",
    )
    publish.add_argument("key", help="model key")
    publish.add_argument("--flow-run", help="id of the flow run, for provenance")
    publish.set_defaults(run=run_publish)
    promote = commands.add_parser(
        "promote",
        help="move an alias; to champion only through the gate",
        epilog="example: sparsemm promote tiny-qwen2-vl --to champion",
    )
    promote.add_argument("key", help="model key")
    promote.add_argument("--to", choices=("candidate", "champion"), required=True)
    promote.add_argument("--version", help="number (the candidate)")
    promote.set_defaults(run=run_promote)
    rollback = commands.add_parser(
        "rollback",
        help="make the former champion champion again",
        epilog="example: sparsemm rollback tiny-qwen2-vl",
    )
    rollback.add_argument("key", help="model key")
    rollback.set_defaults(run=run_rollback)
    lookup = commands.add_parser(
        "lookup",
        help="find a score table and check it",
        epilog="example: sparsemm lookup models:/visual-heads.tiny-qwen2-vl@champion --json",
    )
    lookup.add_argument("source", help="path, models:/visual-heads.<key>@champion or models:/visual-heads.<key>/3")
    lookup.add_argument("--json", action="store_true", help="everything, for other programs")
    lookup.add_argument("--offline", action="store_true", help="ask the cache only")
    lookup.set_defaults(run=run_lookup)
    serve = group(commands, "registry", "the registry", "serve --port 5000").add_parser(
        "serve",
        help="an MLflow server with safe settings on 127.0.0.1",
        epilog="example: sparsemm registry serve --port 5000",
    )
    serve.add_argument("--port", type=_port, default=5000, help="of 127.0.0.1 (5000)")
    serve.add_argument(
        "--store", help="database URI ($MLFLOW_BACKEND_STORE_URI, or SQLite in artifacts/registry/server)"
    )
    serve.add_argument("--artifacts", help="folder or s3:// address (artifacts/registry/server/files)")
    serve.add_argument("--auth", action="store_true", help="basic auth; password from $MLFLOW_AUTH_ADMIN_PASSWORD")
    serve.set_defaults(run=run_serve)


def _port(text: str) -> int:
    if not 1 <= (number := int(text)) <= 65535:
        raise argparse.ArgumentTypeError("1 to 65535")
    return number


def run_publish(given: argparse.Namespace) -> None:
    """Publish once."""
    from sparsemm.registry.publish import publish

    made = publish(load_params(given.params), given.key, given.root, flow_run=given.flow_run)
    print(f"{made.name} version {made.version}: {'published' if made.created else 'was published before'}")


def run_promote(given: argparse.Namespace) -> None:
    """Move an alias, if the gate lets it pass."""
    from sparsemm.registry.promote import promote

    done = promote(load_params(given.params), given.key, given.root, to=given.to, version=given.version)
    _say(done, given.to)


def run_rollback(given: argparse.Namespace) -> None:
    """The champion before this one."""
    from sparsemm.registry.promote import rollback

    _say(rollback(load_params(given.params), given.key, given.root), "champion")


def _say(done: Any, to: str) -> None:
    for reason in done.verdict.reasons if done.verdict else ():
        print(reason)
    if done.verdict is not None and not done.verdict.passed:
        raise RegistryError(f"version {done.version} did not pass the gate", where=done.name)
    print(f"{done.name}: {to} is version {done.version}, before {done.before or 'none'}")


def run_lookup(given: argparse.Namespace) -> None:
    """Find a table, check it and describe it."""
    from sparsemm.registry.client import registry_uri
    from sparsemm.registry.lookup import describe, is_address, look_up

    uri = None
    if is_address(given.source):
        # Where `publish` has put it; another host has the address only, and no params.yaml.
        uri = registry_uri(None, load_params(given.params) if given.params.exists() else None, given.root)
    found = describe(look_up(given.source, tracking_uri=uri, offline=given.offline))
    if given.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name}: {found[name]}" for name in found if name != "scores"))


def run_serve(given: argparse.Namespace) -> None:
    """Serve until stopped."""
    from sparsemm.registry.server import serve

    serve(given.root, given.port, given.store, given.artifacts, given.auth)
