"""A checkpoint and a data set appear on a hub: `models add` and `dvc repro` give a score table, whatever is killed."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.scores import ScoreTable
from tests.datasets.samples import parquet
from tests.faults import Hub, Repo, running
from tests.servers import wait_for

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "data" / "checkpoints" / "tiny-qwen2-vl"
# The command line with small blocks, fetched one after the other, and a rest between shards: so there is a middle.
COMMAND = """#!{python}
import sys, time
sys.path.insert(0, {root!r})
from sparsemm import progress
from sparsemm.fetch import blocks

def slowly(*given, usual=progress.progress):
    for item in usual(*given):
        yield item
        time.sleep(0.1)

progress.progress = slowly
blocks.BLOCK, blocks.WORKERS = 2**15, 1
from sparsemm.cli import main
sys.exit(main())
"""
# The same stages at one go, by one process and without DVC.
AT_ONCE = """
import sys
from sparsemm.cli import main
for given in {commands!r}:
    if main(given):
        sys.exit(1)
"""
PAGES, REPO, DATA = 12, "org/reader", "nnethercott/synthdog-en-detection"


def synthdog():
    """Pages this checkpoint can read, as the published data set holds them, a row group each."""
    rows = []
    for index in range(PAGES):
        page = draw_record("calibration", 0, index, PageStyle(1, 4, (2, 4)))
        buffer = io.BytesIO()
        page.image.save(buffer, format="PNG")
        chunks = [{"chunk": e.text, "coord": [list(e.box[:2]), list(e.box[2:])]} for e in page.entries]
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "2_coord": chunks})
    return parquet(rows, group=1)


@pytest.fixture(scope="module")
def hub():
    """A hub that holds both."""
    with running(Hub()) as server:
        files = {path.name: path.read_bytes() for path in CHECKPOINT.iterdir() if path.is_file()}
        server.repos[REPO] = Repo(files)
        server.repos[DATA] = Repo(
            {"README.md": b"---\nlicense: mit\n---\n", "data/train-00000-of-00001.parquet": synthdog()}
        )
        yield server


class Clone:
    """A clone with no model, its calibration set on the hub; `home` is what its user keeps outside of it."""

    def __init__(self, root: Path, home: Path, endpoint: str) -> None:
        self.root = root
        shutil.copytree(ROOT / "sparsemm", root / "sparsemm", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "csrc", root / "csrc")
        shutil.copy(ROOT / "dvc.yaml", root)
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params["models"] = {}
        params["datasets"]["calibration"] = {"source": "hub", "repo": DATA, "format": "synthdog", "samples": PAGES}
        params["chase"] |= {"batch_size": 1, "shard_size": 1, "max_new_tokens": 48}
        (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        (root / "bin").mkdir()
        command = root / "bin" / "sparsemm"
        command.write_text(COMMAND.format(python=sys.executable, root=str(root)), encoding="utf-8")
        command.chmod(0o755)
        variables = {"DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}
        variables |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        bins = os.pathsep.join([str(root / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = os.environ | variables | {"PATH": bins}
        self.scores = root / "artifacts" / "scores" / "reader.safetensors"

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        with open(self.root / "log", "ab") as log:
            return subprocess.Popen(
                command, cwd=self.root, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def run(self, *command: str) -> None:
        assert self.start(*command).wait(300) == 0, (self.root / "log").read_text(encoding="utf-8")

    def killed(self, condition, what):
        """`dvc repro` until the condition holds, and then SIGKILL for everything it started."""
        started = self.start("dvc", "repro", "-q", "chase@reader")
        try:
            wait_for(lambda: condition() or started.poll() is not None, what)
            assert started.poll() is None, (self.root / "log").read_text(encoding="utf-8")
        finally:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()


def clone(folder, hub):
    folder.mkdir()
    return Clone(folder, folder.parent / f"{folder.name}-home", hub.url)


def test_a_checkpoint_appears_and_a_score_table_results_whatever_is_killed(hub, tmp_path):
    calm = clone(tmp_path / "calm", hub)
    stages = [["models", "add", REPO], ["download", "calibration"], ["align", "reader"], ["chase", "reader"]]
    calm.run(sys.executable, "-c", AT_ONCE.format(commands=stages))

    other = clone(tmp_path / "other", hub)
    other.run("git", "init", "-q")
    other.run("dvc", "init", "-q")
    other.run("sparsemm", "models", "add", REPO)
    entry = yaml.safe_load((other.root / "params.yaml").read_text(encoding="utf-8"))["models"]["reader"]
    assert entry["revision"] == hub.repos[REPO].commit and entry["family"] == "qwen2_vl"
    hub.paths.clear()
    hub.sent, hub.faults = 0, [None, "stall"]
    other.killed(lambda: len(hub.paths) == 2, "the middle of the data set")
    assert not (other.root / "artifacts" / "datasets" / "calibration.parquet").exists()

    def weights():
        return [path for path in hub.paths if path.endswith("model.safetensors")]

    hub.faults = []
    hub.paths.clear()
    other.killed(lambda: len(weights()) >= 2, "the middle of the weights")
    assert not list((other.root.parent / "other-home").rglob(f"{hub.repos[REPO].commit}/model.safetensors"))

    for stage, pattern in (("align", "*/00003.json"), ("chase", "*/0003.safetensors")):
        work = other.root / "artifacts" / "work" / stage / "reader"
        other.killed(lambda w=work, p=pattern: any(w.glob(p)), f"the middle of {stage}")
        assert not other.scores.exists()
        assert any(work.glob(pattern))
    other.run("dvc", "repro", "-q", "chase@reader")
    assert other.scores.read_bytes() == calm.scores.read_bytes()
    header = ScoreTable.load(other.scores).header
    assert header["revision"] == hub.repos[REPO].commit and header["samples"] == PAGES
    served = sum(len(data) for name, data in hub.repos[REPO].files.items() if name == "model.safetensors")
    assert hub.sent < 3 * served
