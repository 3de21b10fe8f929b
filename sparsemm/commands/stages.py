"""`sparsemm download|align|chase|allocate|evaluate|profile|report`: the stages of dvc.yaml."""

from __future__ import annotations

import argparse
import importlib

from sparsemm.commands import Commands
from sparsemm.params import load_params

MODEL_STAGES = {
    "align": ("sparsemm.align", "get answers and tie their tokens to the page"),
    "chase": ("sparsemm.chase.stage", "score the heads of a model"),
    "allocate": ("sparsemm.allocate", "turn scores into slots per KV head"),
    "evaluate": ("sparsemm.evaluate.stage", "accuracy of every method at every budget"),
    "profile": ("sparsemm.profiling.stage", "latency and bytes of every method"),
}


def add(commands: Commands) -> None:
    """One command per stage."""
    download = commands.add_parser("download", help="make a data set's records")
    download.add_argument("key", help="data set key")
    download.set_defaults(run=run_download)
    for name, (_, text) in MODEL_STAGES.items():
        stage = commands.add_parser(name, help=text)
        stage.add_argument("key", help="model key")
        stage.set_defaults(run=run_chase if name == "chase" else run_stage)
        if name in ("align", "chase"):
            stage.add_argument("--dataset", help="one of `robustness` (the calibration data)")
        if name == "chase":
            stage.add_argument("--processes", type=int, help="to share the shards (one per visible GPU)")
            stage.add_argument("--shards", metavar="I/N", help="compute this part of the shards alone, and keep them")
    commands.add_parser("report", help="write the HTML report and its figures").set_defaults(run=run_report)


def run_download(given: argparse.Namespace) -> None:
    """The download stage."""
    from sparsemm.datasets.download import run

    run(load_params(given.params), given.key, given.root)


def run_stage(given: argparse.Namespace) -> None:
    """A stage that runs once per model."""
    stage = importlib.import_module(MODEL_STAGES[given.command][0])
    over = {"dataset": given.dataset} if "dataset" in given else {}
    stage.run(load_params(given.params), given.key, given.root, **over)


def run_chase(given: argparse.Namespace) -> None:
    """The chase stage, a part of its shards, or the same in several processes."""
    from sparsemm.chase import workers

    params = load_params(given.params)
    if given.shards:
        workers.compute(params, given.key, workers.parse_part(given.shards), given.root, given.dataset)
        return
    count = given.processes or workers.how_many(params, given.key, given.dataset)
    if count > 1:
        command = ["--params", str(given.params), "--root", str(given.root), "chase", given.key]
        workers.spread([*command, *(["--dataset", given.dataset] if given.dataset else [])], count)
    run_stage(given)  # finds the shards, and adds them up


def run_report(given: argparse.Namespace) -> None:
    """The report stage."""
    from sparsemm.report.stage import run

    run(load_params(given.params), given.root)
