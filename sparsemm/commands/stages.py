"""The stages of dvc.yaml as commands, from `sparsemm download` and `sparsemm align` to `sparsemm report`."""

from __future__ import annotations

import argparse
import importlib
from typing import Any, get_args

from sparsemm.commands import Commands, command
from sparsemm.errors import ParamsError
from sparsemm.params import Params, load_params
from sparsemm.params.stages import Shape

MODEL_STAGES = {  # name: module, help, files that it reads and files that it writes under artifacts/
    "align": ("align.stage", "align answer tokens with the page", "datasets/*.parquet", "align/KEY.*"),
    "chase": ("chase.stage", "score the heads of a model", "align/KEY.parquet", "scores/KEY.*"),
    "allocate": ("allocate", "turn scores into slots per KV head", "scores/KEY.safetensors", "budgets/KEY.json"),
    "evaluate": ("evaluate.stage", "accuracy of every method at every budget", "budgets/KEY.json", "evaluate/KEY.*"),
    "profile": ("profiling.stage", "latency and bytes of every method", "scores/KEY.safetensors", "profile/KEY.*"),
    "tune": ("tune.stage", "find the method for a model, and prove it", "scores/KEY.safetensors", "recipes/KEY.*"),
    "explore": ("explorer.stage", "attention of single heads on some pages", "budgets/KEY.json", "explorer/KEY.json"),
}
OTHER_STAGES = {  # name: module, its function, and the positional arguments
    "inputs": ("inputs", "run", {}),
    "download": ("datasets.download", "run", {"key": "data set key"}),
    "assemble": ("assemble.stage", "run", {"key": "key under assembled in params.yaml"}),
    "profile-shape": ("profiling.stage", "run_shape", {"name": "name of the shape"}),
    "study": ("studies.common.stage", "run", {"name": "a study under studies in params.yaml", "key": "model key"}),
    "report": ("report.stage", "run", {}),
}
DVC = " `dvc repro` runs it when it is stale; run directly, it uses the files that exist. A stopped run is resumed."


def add(commands: Commands) -> None:
    """Adds one command per stage."""
    other_stage(
        commands,
        "inputs",
        "note what each stage depends on besides data",
        "Write what each stage depends on, code and model, to artifacts/inputs, and print what changed.",
    )
    other_stage(
        commands,
        "download calibration",
        "make a data set's records",
        "Make the records of a data set of params.yaml: artifacts/datasets/KEY.parquet.",
    )
    other_stage(
        commands,
        "assemble smollm2-llava-next",
        "assemble a checkpoint from a packaged language model and the weights trained on it",
        "Assemble a checkpoint of params.yaml in artifacts/checkpoints/KEY.",
    )
    for name, (_, text, reads, writes) in MODEL_STAGES.items():
        description = f"{text.capitalize()}: artifacts/{reads} -> artifacts/{writes}.{DVC}"
        run = run_chase if name == "chase" else run_model_stage
        stage = command(commands, name, run, text, f"{name} tiny-qwen2-vl", description=description)
        stage.add_argument("key", help="model key")
        if name in ("align", "chase"):
            stage.add_argument("--dataset", help="a data set under `robustness` (the calibration set)")
        if name == "chase":
            stage.add_argument("--processes", type=int, help="processes that share the shards (one per visible GPU)")
            stage.add_argument("--shards", metavar="I/N", help="compute only this part of the shards, and keep them")
            stage.add_argument("--text", action="store_true", help="score copying from text, without images or records")
            stage.add_argument("--prompts", type=int, help="number of texts, with --text (48)")
        if name == "allocate":
            stage.add_argument("--text", action="store_true", help="use scores/text/KEY, write budgets/text/KEY")
        if name == "evaluate":
            stage.add_argument("--limit", type=int, help="number of documents; they go to `limited` in artifacts/work")
    other_stage(
        commands,
        "profile-shape vicuna-7b",
        "latency and bytes of a 7B shape with random weights",
        "Profile a shape of `profile.shapes` with random weights: artifacts/profile/shapes/NAME.*.",
        choices=get_args(Shape),
    )
    other_stage(
        commands,
        "study masking tiny-qwen2-vl",
        "one study of a model, with intervals",
        "One study of params.yaml: artifacts/studies/NAME/KEY.csv and .json.",
    )
    other_stage(
        commands,
        "report",
        "write the HTML report",
        "Write artifacts/report/index.html and the tables of `dvc plots` from other stages' files.",
    )


def other_stage(commands: Commands, example: str, text: str, description: str, **options: Any) -> None:
    """Adds a stage of `OTHER_STAGES`, the first word of its example. `options` are those of its arguments."""
    name = example.split()[0]
    stage = command(commands, name, run_other_stage, text, example, description=description + DVC)
    for argument, meaning in OTHER_STAGES[name][2].items():
        stage.add_argument(argument, help=meaning, **options)


def run_other_stage(args: argparse.Namespace) -> None:
    """Runs a stage that does not exist once per model."""
    module, function, arguments = OTHER_STAGES[args.command]
    run = getattr(importlib.import_module(f"sparsemm.{module}"), function)
    result = run(load_params(args.params), *(getattr(args, name) for name in arguments), args.root)
    if args.command == "assemble":
        print(result)


def run_model_stage(args: argparse.Namespace) -> None:
    """Runs a stage that exists once per model."""
    options = {name: getattr(args, name) for name in ("dataset", "limit") if name in args}
    if getattr(args, "text", False):
        options["folder"] = "text"
    if (limit := options.get("limit")) is not None and limit < 1:
        raise ParamsError(f"{limit} documents are too few", where="--limit", hint="use at least 1")
    params = load_params(args.params)
    if args.command != "allocate":  # the one stage that loads no model
        params.check_folders([args.key], str(args.params))
    stage = importlib.import_module(f"sparsemm.{MODEL_STAGES[args.command][0]}")
    stage.run(params, args.key, args.root, **options)


def run_chase(args: argparse.Namespace) -> None:
    """Runs the chase stage, in several processes if asked, or computes a part of its shards."""
    from sparsemm.chase import workers

    params = load_params(args.params)
    params.check_folders([args.key], str(args.params))
    if args.text:
        run_chase_text(args, params)
        return
    if args.prompts is not None:
        raise ParamsError("images have no prompts to count", where="--prompts", hint="use it with --text")
    if args.shards:
        workers.compute_part(params, args.key, workers.parse_part(args.shards), args.root, args.dataset)
        return
    count = workers.process_count(params, args.key, args.dataset) if args.processes is None else args.processes
    if count < 1:
        raise ParamsError(f"{count} processes are too few", where="--processes", hint="use at least 1")
    if count > 1:
        chase = ["--params", str(args.params), "--root", str(args.root), "chase", args.key]
        workers.run_processes([*chase, *(["--dataset", args.dataset] if args.dataset else [])], count)
    run_model_stage(args)  # adds up the shards


def run_chase_text(args: argparse.Namespace, params: Params) -> None:
    """Runs the chase over text, in one process."""
    from sparsemm.chase.text import PROMPTS, run

    for name in ("dataset", "processes", "shards"):
        if getattr(args, name) is not None:
            what = "a chase over text has one process and no data set"
            raise ParamsError(what, where=f"--{name}", hint="leave it out")
    run(params, args.key, args.root, PROMPTS if args.prompts is None else args.prompts)
