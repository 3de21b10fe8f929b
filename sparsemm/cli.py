"""The one command: parse, call, print."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from sparsemm.errors import ModelError, PipelineError, RegistryError, SparseMMError
from sparsemm.params import load_params, schema

MODEL_STAGES = {
    "align": ("sparsemm.align", "get answers and tie their tokens to the page"),
    "chase": ("sparsemm.chase.stage", "score the heads of a model"),
    "allocate": ("sparsemm.allocate", "turn scores into slots per KV head"),
    "evaluate": ("sparsemm.evaluate.stage", "accuracy of every method at every budget"),
    "profile": ("sparsemm.profiling.stage", "latency and bytes of every method"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sparsemm", description="Visual heads and KV-cache budgets.")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="params file (params.yaml)")
    parser.add_argument("--root", type=Path, default=Path("."), help="folder that holds artifacts/ (here)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("download", help="make a data set's records").add_argument("key", help="data set key")
    for name, (_, text) in MODEL_STAGES.items():
        commands.add_parser(name, help=text).add_argument("key", help="model key")
    commands.add_parser("report", help="write the HTML report and its figures")

    bench = commands.add_parser("bench", help="time the cache's operations against others and against a copy")
    bench.add_argument("name", help="append, compact, observe, decode, step or memory")
    bench.add_argument("--json", action="store_true", help="print everything as one JSON object")
    bench.add_argument("--shape", help="small, vicuna-7b, mistral-7b or qwen2-vl-7b")
    bench.add_argument("--dtype", help="float32, float16 or bfloat16")
    bench.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one")
    bench.add_argument("--repeats", type=int, default=9, help="timed turns (9)")

    models = commands.add_parser("models", help="the models in params.yaml").add_subparsers(
        dest="action", required=True
    )
    add = models.add_parser("add", help="detect the family from config.json and write the entry")
    add.add_argument("checkpoint", help="folder, hub id, or s3://bucket/prefix (fetched to data/incoming)")
    add.add_argument("--revision", help="hub revision (a local folder's is computed)")
    add.add_argument("--key", help="name of the entry (from the checkpoint's name)")
    add.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: what config.json says")
    add.add_argument("--note", default="", help="shown beside the model in every table")
    models.add_parser("list", help="key, family, dtype, revision, checkpoint")
    models.add_parser("remove", help="remove an entry; artifacts stay").add_argument("key")

    flows = commands.add_parser("flows", help="Prefect flows").add_subparsers(dest="action", required=True)
    flows.add_parser(
        "deploy", add_help=False, help="make pools, limits and automations, and deploy; `deploy --help` lists options"
    )

    publish = commands.add_parser("publish", help="publish a model's results in the registry, once")
    publish.add_argument("key", help="model key")
    publish.add_argument("--flow-run", help="id of the flow run, for provenance")
    promote = commands.add_parser("promote", help="move an alias; to champion only through the gate")
    promote.add_argument("key", help="model key")
    promote.add_argument("--to", choices=("candidate", "champion"), required=True)
    promote.add_argument("--version", help="number (the candidate)")
    commands.add_parser("rollback", help="make the former champion champion again").add_argument(
        "key", help="model key"
    )
    lookup = commands.add_parser("lookup", help="find a score table and check it")
    lookup.add_argument("source", help="path, models:/visual-heads.<key>@champion or models:/visual-heads.<key>/3")
    lookup.add_argument("--json", action="store_true", help="everything, for other programs")
    lookup.add_argument("--offline", action="store_true", help="ask the cache only")
    registry = commands.add_parser("registry", help="the registry").add_subparsers(dest="action", required=True)
    serve = registry.add_parser("serve", help="an MLflow server with safe settings on 127.0.0.1")
    serve.add_argument("--port", type=int, default=5000)
    serve.add_argument(
        "--store", help="database URI ($MLFLOW_BACKEND_STORE_URI, or SQLite in artifacts/registry/server)"
    )
    serve.add_argument("--artifacts", help="folder or s3:// address (artifacts/registry/server/files)")
    serve.add_argument("--auth", action="store_true", help="basic auth; password from $MLFLOW_AUTH_ADMIN_PASSWORD")

    params = commands.add_parser("params", help="check params.yaml")
    params.add_argument("--schema", action="store_true", help="print its JSON schema")

    scores = commands.add_parser("scores", help="score tables").add_subparsers(dest="action", required=True)
    scores.add_parser("show", help="top heads, shares, reliability").add_argument("table", type=Path)
    diff = scores.add_parser("diff", help="rank correlation and overlap of two tables")
    diff.add_argument("table", type=Path)
    diff.add_argument("other", type=Path)
    export = scores.add_parser("export", help='write the published JSON form {"layer-head": [..]}')
    export.add_argument("table", type=Path)
    export.add_argument("output", type=Path)
    imported = scores.add_parser("import", help="read the published JSON form as the table of a model in params.yaml")
    imported.add_argument("source", type=Path)
    imported.add_argument("key", help="model key")
    imported.add_argument("output", type=Path)
    return parser


def _models(given: argparse.Namespace) -> None:
    from sparsemm import models

    if given.action == "list":
        for key, entry in load_params(given.params).models.items():
            note = f"  ({entry.note})" if entry.note else ""
            print(f"{key}  {entry.family}  {entry.dtype}  {entry.revision or '-'}  {entry.checkpoint}{note}")
    elif given.action == "remove":
        models.remove_entry(given.params, given.key)
        print(f"removed {given.key} from {given.params}")
    else:
        key, checkpoint = given.key or models.default_key(given.checkpoint), given.checkpoint
        fetched = checkpoint.startswith("s3://")
        if fetched:
            checkpoint = _from_s3(checkpoint, key, given.root)
        place = str(given.root / checkpoint) if fetched else checkpoint
        entry = models.new_entry(place, given.revision, given.dtype, given.note)
        entry = entry.model_copy(update={"checkpoint": checkpoint})
        changed = models.add_entry(given.params, key, entry)
        print(f"{key}: {entry.family}, {entry.dtype}, revision {entry.revision or '-'}")
        print(f"written to {given.params}; `dvc repro` runs its stages" if changed else "nothing changed")


def _from_s3(location: str, key: str, root: Path) -> str:
    """Fetch a checkpoint to data/incoming, and return its folder."""
    from sparsemm.params import WatchParams
    from sparsemm.watch import newest

    arrival = newest(WatchParams.model_validate({"source": "s3", "location": location}), key, root)
    if arrival is None:
        hint = "config.json and every safetensors shard must be there"
        raise ModelError("no complete checkpoint", where=location, hint=hint)
    return arrival.checkpoint


def _scores(given: argparse.Namespace) -> None:
    from sparsemm import scores

    if given.action == "import":
        from sparsemm.models import imported_header

        header = imported_header(load_params(given.params).model(given.key))
        scores.import_published(given.source, header).save(given.output)
        print(f"wrote {given.output}")
        return
    table = scores.ScoreTable.load(given.table)
    if given.action == "show":
        print(scores.show(table))
    elif given.action == "diff":
        print(scores.diff(table, scores.ScoreTable.load(given.other)))
    else:
        scores.export_published(table, given.output)
        print(f"wrote {given.output}")


def _deploy(root: Path, options: list[str]) -> int:
    """Hand over to the flows of the repository; nothing here imports them."""
    if not (root / "flows" / "deploy.py").is_file():
        raise PipelineError("no flows here", where=str(root), hint="run from the repository root")
    return subprocess.run([sys.executable, "-m", "flows.deploy", *options], cwd=root, check=False).returncode


def _registry(given: argparse.Namespace) -> None:
    if given.command == "registry":
        from sparsemm.registry.server import serve

        serve(given.root, given.port, given.store, given.artifacts, given.auth)
    elif given.command == "lookup":
        from sparsemm.registry.lookup import describe, look_up

        found = describe(look_up(given.source, offline=given.offline))
        if given.json:
            print(json.dumps(found))
        else:
            print("\n".join(f"{name}: {found[name]}" for name in found if name != "scores"))
    elif given.command == "publish":
        from sparsemm.registry.publish import publish

        made = publish(load_params(given.params), given.key, given.root, flow_run=given.flow_run)
        print(f"{made.name} version {made.version}: {'published' if made.created else 'was published before'}")
    else:
        from sparsemm.registry import promote as champion

        params = load_params(given.params)
        if given.command == "rollback":
            done = champion.rollback(params, given.key, given.root)
            to = "champion"
        else:
            done = champion.promote(params, given.key, given.root, to=given.to, version=given.version)
            to = given.to
        for reason in done.verdict.reasons if done.verdict else ():
            print(reason)
        if done.verdict is not None and not done.verdict.passed:
            raise RegistryError(f"version {done.version} did not pass the gate", where=done.name)
        print(f"{done.name}: {to} is version {done.version}, before {done.before or 'none'}")


def _bench(given: argparse.Namespace) -> None:
    from sparsemm.profiling.bench import run

    result = run(given.name, given.shape, given.dtype, given.device, given.repeats)
    if given.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['bench']}: {result['shape']}, {result['dtype']}, {result['device']}")
    for name, value in result["ratios"].items():
        print(f"  {name}  {value}")


def _run(given: argparse.Namespace) -> None:
    import importlib

    if given.command == "models":
        _models(given)
    elif given.command == "scores":
        _scores(given)
    elif given.command == "bench":
        _bench(given)
    elif given.command == "params":
        if given.schema:
            print(json.dumps(schema(), indent=2))
        else:
            load_params(given.params)
            print(f"{given.params} is valid")
    elif given.command in ("publish", "promote", "rollback", "lookup", "registry"):
        _registry(given)
    elif given.command == "download":
        from sparsemm.datasets.download import run as download

        download(load_params(given.params), given.key, given.root)
    elif given.command == "report":
        from sparsemm.report.stage import run as report

        report(load_params(given.params), given.root)
    else:
        stage = importlib.import_module(MODEL_STAGES[given.command][0])
        stage.run(load_params(given.params), given.key, given.root)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, or 1 after printing what was wrong and what to do."""
    given, rest = _parser().parse_known_args(arguments)
    deploys = given.command == "flows"
    if rest and not deploys:
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if deploys:
            return _deploy(given.root, rest)
        _run(given)
    except SparseMMError as error:
        print(f"sparsemm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sparsemm: stopped; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
