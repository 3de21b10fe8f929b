"""Copies of the last commit with few pages, in which the whole pipeline takes minutes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

Raw = dict[str, Any]  # params.yaml as it is written


def copy_of_head(root: Path, folder: Path, shrink: Callable[[Raw], None]) -> Path:
    """Creates a repository in `folder` that holds the last commit of `root`, smaller params and no results.

    Args:
        shrink: changes the params in place.

    Returns:
        the absolute path of `folder`, whose old contents are gone.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=root, stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "-x"], input=archive, cwd=folder, check=True)
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    shrink(params)
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    shutil.rmtree(folder / "artifacts")
    (folder / "dvc.lock").unlink()
    git = ["git", "-c", "user.name=sparsemm", "-c", "user.email=sparsemm@localhost"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "few pages"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return folder.resolve()


def smallest(params: Raw) -> None:
    """Leaves one tiny model, and the least of everything that still goes through every stage, with a study or more of
    each group.
    """
    # One is enough: tests/studies/test_stage.py runs them all.
    params["studies"]["measured"] = {"masking": params["studies"]["measured"]["masking"]}
    _few(params, "tiny-qwen2-vl", pages=12, methods=["full", "sparsemm", "snapkv"])
    params["chase"] |= {"batch_size": 4, "shard_size": 8}
    params["evaluate"] |= {"bootstrap": 200}
    params["profile"] |= {"lengths": [160], "new_tokens": 4, "repetitions": 1}


def demo(params: Raw) -> None:
    """Leaves the pretrained model, and few pages, so that intervals are wide."""
    _few(params, "smollm2-llava-next", pages=12, methods=["full", "sparsemm", "snapkv", "adakv", "sparsemm+blend-echo"])
    params["allocate"]["budgets"] = [12, 24]
    params["datasets"]["calibration"]["samples"] = 24
    params["robustness"] = {}
    params["studies"] = {
        "derived": {"curve": {}},
        "measured": {"masking": {"samples": 6, "tasks": ["read"], "fractions": [0.1], "zero": ["output"], "seeds": 1}},
        "compared": {},
    }
    params["profile"] |= {"lengths": [128, 512], "budget": 24}
    params["datasets"]["evaluation"]["samples"] = 18  # a third of them proves the recipe: fewer than six show nothing
    params["tune"] |= {"samples": 18, "tasks": ["read"], "budgets": [24]}
    params["tune"] |= {"methods": ["sparsemm"], "selectors": ["snapkv", "blend-echo"], "powers": [1.0]}


def _few(params: Raw, key: str, pages: int, methods: list[str]) -> None:
    entry = params["models"][key]
    params["models"] = {key: {name: entry[name] for name in ("checkpoint", "revision", "family", "dtype")}}
    params["assembled"] = {name: one for name, one in params["assembled"].items() if name == key}
    params["datasets"]["calibration"]["samples"] = params["datasets"]["evaluation"]["samples"] = pages
    params["allocate"]["budgets"] = params["allocate"]["budgets"][-1:]
    params["evaluate"] |= {"samples": pages, "methods": methods}
    smallest = {"samples": 4, "tasks": ["qa"], "seeds": 1, "fractions": [0.1], "values": [0.5]}
    smallest |= {"budget": params["allocate"]["budgets"][0], "budgets": params["allocate"]["budgets"]}
    smallest |= {"methods": ["full", "sparsemm", "snapkv"], "windows": 2, "copies": 2, "first": 0}
    for study in (study for group in params["studies"].values() for study in group.values()):
        study |= {name: value for name, value in smallest.items() if name in study}
    params["profile"] |= {"budget": smallest["budget"]}
    params["tune"] |= {"samples": 6, "scenarios": ["known"], "tasks": ["qa"], "budgets": smallest["budgets"]}
    params["tune"] |= {"methods": ["snapkv", "sparsemm"], "selectors": ["peak"], "rhos": [0.1], "powers": [1.0]}
    params["tune"] |= {"against": smallest["methods"]}
