"""A checkpoint of 7.6 billion weights on a hub, and a clone that takes it: `python tests/seven_billion FOLDER`.

The hub is a local server that speaks its protocol; the checkpoint reads pages (widen.py). The clone runs `models add`
and `dvc repro` in bf16 up to the evaluation of three methods, on a few pages, with the device that torch finds: `python
tests/cuda_stand_in tests/seven_billion FOLDER` for the stand-in. The weights are 15 GB, twice in FOLDER and
once in memory. Prints seconds of every command, and how far score table and answers are from those of
tiny-qwen2-vl.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from faults import Hub, Repo, running  # noqa: E402
from widen import KV_HEADS, LAYERS, QUERY_HEADS, widen  # noqa: E402

from sparsemm.scores import ScoreTable  # noqa: E402

SMALL, HUB_ID, KEY = "tiny-qwen2-vl", "org/Qwen2-VL-7B-Wide", "qwen2-vl-7b-wide"
PAGES, ASKED = 16, 6
STAGES = ("align", "chase", "allocate", "evaluate")


class FromDisk(Repo):
    """A repository whose large files are not held in memory."""

    def __init__(self, folder: Path) -> None:
        self.licence, self.gated = "apache-2.0", False
        self.files, self.digests = {}, {}
        for path in sorted(folder.iterdir()):
            with open(path, "rb") as handle:
                large = path.suffix == ".safetensors"
                self.files[path.name] = mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ) if large else handle.read()
        self.commit = hashlib.sha1(repr([*self.files]).encode()).hexdigest()

    def digest(self, name: str) -> str:
        """Known after the first time: a shard takes seconds."""
        if name not in self.digests:
            self.digests[name] = super().digest(name)
        return self.digests[name]

    def facts(self, name: str) -> dict[str, object]:
        """As for files in memory."""
        if not self._large(name):
            return super().facts(name)
        size, digest = len(self.files[name]), self.digest(name)
        large = {"sha256": digest, "size": size, "pointerSize": 134}
        return {"rfilename": name, "size": size, "blobId": digest[:40], "lfs": large}


def clone(folder: Path) -> None:
    """A clone of this repository without a model, for few pages."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["models"] = {}
    params["robustness"] = {}
    params["datasets"].pop("small-type")
    params["datasets"]["calibration"]["samples"] = PAGES
    params["chase"] |= {"batch_size": 8, "shard_size": 8}
    params["allocate"]["budgets"] = [24]
    few = {"samples": ASKED, "batch_size": ASKED, "methods": ["full", "sparsemm", "snapkv"], "random_seeds": 1}
    params["evaluate"] |= few
    params["studies"] = {kind: {} for kind in params["studies"]}
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def main(folder: Path) -> int:
    """Make the checkpoint where it is not yet, serve it, and run the stages on it and on the small one."""
    served, work = folder / "hub", folder / "clone"
    if not (served / "model.safetensors.index.json").exists():
        widen(ROOT / "data" / "checkpoints" / SMALL, served)
    clone(work)
    hub = Hub()
    hub.repos[HUB_ID] = FromDisk(served)
    found = os.environ.get("PYTHONPATH", "")
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "0",
        "DVC_NO_ANALYTICS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(work), found])),
    }
    commands = [["sparsemm", "models", "add", HUB_ID, "--dtype", "bfloat16"]]
    commands += [["sparsemm", "models", "add", f"data/checkpoints/{SMALL}"]]
    commands += [["dvc", "repro", "-q", f"{stage}@{key}"] for key in (KEY, SMALL) for stage in STAGES]
    with running(hub):
        for command in commands:
            began = time.monotonic()
            if subprocess.run(command, cwd=work, env=environment).returncode:
                return 1
            print(" ".join(command), f"{time.monotonic() - began:.0f} s", flush=True)
    compare(work)
    return 0


def compare(work: Path) -> None:
    """Print the large one's results beside the small one's."""
    large, small = (ScoreTable.load(work / "artifacts" / "scores" / f"{key}.safetensors") for key in (KEY, SMALL))
    layers, heads = small.scores.shape
    group, wide = heads // KV_HEADS, QUERY_HEADS // KV_HEADS
    same = large.scores.reshape(LAYERS, KV_HEADS, wide)[:layers, :, :group].reshape(layers, heads)
    result = {"largest_difference_of_a_score": float(abs(same - small.scores).max()), "largest": float(same.max())}
    tables = [pd.read_csv(work / "artifacts" / "evaluate" / f"{key}.csv") for key in (KEY, SMALL)]
    for table, name in zip(tables, (KEY, SMALL), strict=True):
        chosen = table[["task", "method", "budget", "value", "bytes"]]
        result[name] = json.loads(chosen.to_json(orient="records"))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]).resolve()))
