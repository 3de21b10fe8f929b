"""Shrink params.yaml of the current folder to the smallest settings that still go through every stage."""

from pathlib import Path

import yaml

path = Path("params.yaml")
params = yaml.safe_load(path.read_text(encoding="utf-8"))
params["models"] = {"tiny-qwen2-vl": params["models"]["tiny-qwen2-vl"]}
params["datasets"]["calibration"]["samples"] = params["datasets"]["evaluation"]["samples"] = 12
params["chase"] |= {"batch_size": 4, "shard_size": 8}
params["allocate"]["budgets"] = params["allocate"]["budgets"][-1:]
params["evaluate"] |= {"samples": 12, "methods": ["full", "sparsemm", "snapkv"], "bootstrap": 200}
smallest = {"samples": 4, "held_out": 2, "tasks": ["qa"], "seeds": 1, "fractions": [0.1], "values": [0.5]}
smallest |= {"budget": params["allocate"]["budgets"][0], "budgets": params["allocate"]["budgets"]}
smallest |= {"methods": ["full", "sparsemm", "snapkv"]}
smallest |= {"windows": 2, "copies": 2}
for study in (study for group in params["studies"].values() for study in group.values()):
    study |= {key: value for key, value in smallest.items() if key in study}
params["profile"] |= {"budget": smallest["budget"], "lengths": [160], "new_tokens": 4, "repetitions": 1}
path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
