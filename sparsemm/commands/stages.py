"""`sparsemm download|align|chase|allocate|evaluate|profile|study|report`: the stages of dvc.yaml."""

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
        if name == "evaluate":
            stage.add_argument("--limit", type=int, help="first documents only; results go to artifacts/work/limited")
        stage.set_defaults(run=run_stage)
    study = commands.add_parser("study", help="one study of a model, with intervals")
    study.add_argument("name", help="key under studies in params.yaml")
    study.add_argument("key", help="model key")
    study.set_defaults(run=run_study)
    commands.add_parser("report", help="write the HTML report and its figures").set_defaults(run=run_report)


def run_download(given: argparse.Namespace) -> None:
    """The download stage."""
    from sparsemm.datasets.download import run

    run(load_params(given.params), given.key, given.root)


def run_stage(given: argparse.Namespace) -> None:
    """A stage that runs once per model."""
    stage = importlib.import_module(MODEL_STAGES[given.command][0])
    options = {"limit": given.limit} if given.command == "evaluate" else {}
    stage.run(load_params(given.params), given.key, given.root, **options)


def run_study(given: argparse.Namespace) -> None:
    """The study stage."""
    from sparsemm.studies.stage import run

    run(load_params(given.params), given.name, given.key, given.root)


def run_report(given: argparse.Namespace) -> None:
    """The report stage."""
    from sparsemm.report.stage import run

    run(load_params(given.params), given.root)
