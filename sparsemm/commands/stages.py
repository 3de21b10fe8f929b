"""The stages of dvc.yaml, each a command: `sparsemm download`, `sparsemm align` and so on to `sparsemm report`."""

from __future__ import annotations

import argparse
import importlib
from typing import get_args

from sparsemm.commands import Commands
from sparsemm.errors import ParamsError
from sparsemm.params import load_params
from sparsemm.params.stages import Shape

MODEL_STAGES = {  # name: module, what it does, what it reads and what it writes under artifacts/
    "align": ("align.stage", "get answers and tie their tokens to the page", "datasets/*.parquet", "align/KEY.*"),
    "chase": ("chase.stage", "score the heads of a model", "align/KEY.parquet", "scores/KEY.*"),
    "allocate": ("allocate", "turn scores into slots per KV head", "scores/KEY.safetensors", "budgets/KEY.json"),
    "evaluate": ("evaluate.stage", "accuracy of every method at every budget", "budgets/KEY.json", "evaluate/KEY.*"),
    "profile": ("profiling.stage", "latency and bytes of every method", "scores/KEY.safetensors", "profile/KEY.*"),
    "explore": ("explorer.stage", "what single heads look at on some pages", "budgets/KEY.json", "explorer/KEY.json"),
}
DVC = "`dvc repro` runs it when it is stale; alone it runs with what is there. Stopped, it goes on where it was."


def add(commands: Commands) -> None:
    """One command per stage."""
    download = commands.add_parser(
        "download",
        help="make a data set's records",
        description="Make the records of a data set of params.yaml: artifacts/datasets/KEY.parquet. " + DVC,
        epilog="example: sparsemm download calibration",
    )
    download.add_argument("key", help="data set key")
    download.set_defaults(run=run_download)
    assemble = commands.add_parser(
        "assemble",
        help="put a checkpoint together from a packaged language model and what was trained on it",
        description="Assemble a checkpoint of params.yaml in artifacts/checkpoints/KEY; `dvc repro` does when stale.",
        epilog="example: sparsemm assemble smollm2-llava-next",
    )
    assemble.add_argument("key", help="key under assembled in params.yaml")
    assemble.set_defaults(run=run_assemble)
    for name, (_, text, reads, writes) in MODEL_STAGES.items():
        stage = commands.add_parser(
            name,
            help=text,
            description=f"{text.capitalize()}: artifacts/{reads} -> artifacts/{writes}. {DVC}",
            epilog=f"example: sparsemm {name} tiny-qwen2-vl",
        )
        stage.add_argument("key", help="model key")
        stage.set_defaults(run=run_chase if name == "chase" else run_stage)
        if name in ("align", "chase"):
            stage.add_argument("--dataset", help="one of `robustness` (the calibration data)")
        if name == "chase":
            stage.add_argument("--processes", type=int, help="to share the shards (one per visible GPU)")
            stage.add_argument("--shards", metavar="I/N", help="compute this part of the shards alone, and keep them")
        if name == "evaluate":
            stage.add_argument("--limit", type=int, help="first documents only; written to `limited` in artifacts/work")
    shape = commands.add_parser(
        "profile-shape",
        help="latency and bytes of a 7B shape with random weights",
        description="Profile a shape of `profile.shapes` with random weights: artifacts/profile/shapes/NAME.*. " + DVC,
        epilog="example: sparsemm profile-shape vicuna-7b",
    )
    shape.add_argument("name", choices=get_args(Shape), help="which one")
    shape.set_defaults(run=run_shape)
    study = commands.add_parser(
        "study",
        help="one study of a model, with intervals",
        description="One study of params.yaml: artifacts/studies/NAME/KEY.csv and .json. " + DVC,
        epilog="example: sparsemm study masking tiny-qwen2-vl",
    )
    study.add_argument("name", help="a study under studies in params.yaml")
    study.add_argument("key", help="model key")
    study.set_defaults(run=run_study)
    report = commands.add_parser(
        "report",
        help="write the HTML report",
        description="Write artifacts/report/index.html and the tables of `dvc plots` from other stages' files. " + DVC,
        epilog="example: sparsemm report",
    )
    report.set_defaults(run=run_report)


def run_download(given: argparse.Namespace) -> None:
    """The download stage."""
    from sparsemm.datasets.download import run

    run(load_params(given.params), given.key, given.root)


def run_assemble(given: argparse.Namespace) -> None:
    """The assemble stage."""
    from sparsemm.assemble.stage import run

    print(run(load_params(given.params), given.key, given.root))


def run_stage(given: argparse.Namespace) -> None:
    """A stage that runs once per model."""
    options = {name: getattr(given, name) for name in ("dataset", "limit") if name in given}
    if (limit := options.get("limit")) is not None and limit < 1:
        raise ParamsError(f"{limit} documents answer nothing", where="--limit", hint="at least 1")
    params = load_params(given.params)
    if given.command != "allocate":  # which needs no model
        params.check_folders([given.key], str(given.params))
    stage = importlib.import_module(f"sparsemm.{MODEL_STAGES[given.command][0]}")
    stage.run(params, given.key, given.root, **options)


def run_chase(given: argparse.Namespace) -> None:
    """The chase stage, a part of its shards, or the same in several processes."""
    from sparsemm.chase import workers

    params = load_params(given.params)
    params.check_folders([given.key], str(given.params))
    if given.shards:
        workers.compute(params, given.key, workers.parse_part(given.shards), given.root, given.dataset)
        return
    count = given.processes
    if count is None:
        count = workers.how_many(params, given.key, given.dataset)
    if count < 1:
        raise ParamsError(f"{count} processes compute nothing", where="--processes", hint="at least 1")
    if count > 1:
        command = ["--params", str(given.params), "--root", str(given.root), "chase", given.key]
        workers.spread([*command, *(["--dataset", given.dataset] if given.dataset else [])], count)
    run_stage(given)  # finds the shards, and adds them up


def run_shape(given: argparse.Namespace) -> None:
    """The profile-shape stage."""
    from sparsemm.profiling.stage import run_shape as run

    run(load_params(given.params), given.name, given.root)


def run_study(given: argparse.Namespace) -> None:
    """The study stage."""
    from sparsemm.studies.stage import run

    run(load_params(given.params), given.name, given.key, given.root)


def run_report(given: argparse.Namespace) -> None:
    """The report stage."""
    from sparsemm.report.stage import run

    run(load_params(given.params), given.root)
