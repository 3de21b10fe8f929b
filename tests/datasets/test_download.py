"""The download stage: the same bytes again, whatever happened before."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sparsemm.datasets import download
from sparsemm.datasets.records import read_records
from sparsemm.errors import FetchError, ParamsError
from sparsemm.files import sha256_file
from sparsemm.params import load_params
from sparsemm.params.datasets import SyntheticParams
from tests.datasets.pdfs import pdf, text
from tests.datasets.samples import OWN, params, parquet, png, synthdog_rows
from tests.faults import Repo
from tests.servers import wait_for

ROOT = Path(__file__).parent.parent.parent


def test_an_unknown_key_names_the_known_ones(tmp_path):
    with pytest.raises(ParamsError, match="known: calibration, evaluation, .*mine"):
        download.run(params(source="pdf", path="x", licence="x"), "none", tmp_path)


def test_a_place_without_files_is_told(store, tmp_path):
    (tmp_path / "void").mkdir()
    for given in (
        {"source": "s3", "location": "s3://bucket/none", "format": "coco"},
        {"source": "folder", "path": "void", "format": "coco"},
        {"source": "pdf", "path": "void"},
    ):
        with pytest.raises(FetchError, match="(none|void): nothing is there"):
            download.run(params(licence="x", **given), "mine", tmp_path)


def test_a_disk_that_is_full_while_records_are_written(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.pdf").write_bytes(pdf((text([(20, 100, b"word")]), b"")))
    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(FetchError, match="mine.parquet: the disk is full"):
        download.run(params(source="pdf", path="a.pdf", licence="x"), "mine", tmp_path)


def test_synthetic_pages_are_the_ones_in_the_lock_file(tmp_path):
    import hashlib

    locked = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]["download@evaluation"]["outs"][0]
    download.run(params(source="pdf", path="x", licence="x"), "evaluation", tmp_path)
    made = (tmp_path / "artifacts" / "datasets" / "evaluation.parquet").read_bytes()
    assert hashlib.md5(made, usedforsecurity=False).hexdigest() == locked["md5"]


def test_synthetic_pages_that_were_killed_leave_nothing(tmp_path):
    half = (
        "import os; from pathlib import Path; from sparsemm.datasets import download\n"
        "from sparsemm.params import load_params\n"
        "real = download.synthetic_records\n"
        "def dies(given):\n    yield next(real(given))\n    os.kill(os.getpid(), 9)\n"
        "download.synthetic_records = dies\n"
        f"download.run(load_params({str(OWN)!r}), 'small-type', Path('.'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", half], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL and list(tmp_path.rglob(".*.tmp"))
    download.run(load_params(OWN), "small-type", tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["small-type.parquet"]


def test_the_same_pages_give_the_same_bytes(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf(*[(text([(20, 100, b"page %d" % i)]), b"") for i in range(3)]))
    given = params(source="pdf", path="a.pdf", licence="x")
    out = tmp_path / "artifacts" / "datasets" / "mine.parquet"
    download.run(given, "mine", tmp_path)
    first = sha256_file(out)
    download.run(given, "mine", tmp_path)
    assert sha256_file(out) == first and len(read_records(out)) == 3


def _params(folder: Path, **given: object) -> Path:
    values = yaml.safe_load(OWN.read_text())
    values["datasets"]["mine"] = {"samples": 1000, **given}
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def _command(given: Path, root: Path) -> list[str]:
    options = ["--params", str(given), "--root", str(root)]
    return [sys.executable, "-m", "sparsemm.cli", *options, "download", "mine"]


@pytest.mark.parametrize("source", ["hub", "s3"])
def test_killed_in_the_middle_it_goes_on_where_it_was(source, hub, store, store_proxy, tmp_path):
    """The command in a process of its own; the server goes silent in the middle, and SIGKILL comes."""
    files = {
        f"data/train-0000{i}-of-00003.parquet": parquet(synthdog_rows(60, 60 * i, (200, 150)), group=20)
        for i in range(3)
    }
    total = sum(map(len, files.values()))
    environment = dict(os.environ)
    if source == "hub":
        hub.repos["o/d"], server = Repo(files), hub
        environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
        given = _params(tmp_path, source="hub", repo="o/d", format="synthdog")
    else:
        server = store_proxy
        for name, data in files.items():
            store.put_object(Bucket="bucket", Key=f"d/{name}", Body=data)
        given = _params(tmp_path, source="s3", location="s3://bucket/d", format="synthdog", licence="mit")
    command = _command(given, tmp_path)
    server.faults = [None, None, None, "stall"]
    log = tmp_path / "log"
    with open(log, "wb") as handle:
        child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=handle, stderr=handle)
        wait_for(lambda: len(server.paths) == 4 or child.poll() is not None, "the fourth request")
    assert child.poll() is None, log.read_text()
    child.send_signal(signal.SIGKILL)
    child.wait()
    out = tmp_path / "artifacts" / "datasets" / "mine.parquet"
    assert not out.exists()
    before = server.sent
    assert 0 < before < total
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "180 records of" in done.stdout and server.sent == total
    assert [r.id for r in read_records(out)] == [f"synthdog-{i:06d}" for i in range(180)]
    assert not (tmp_path / "artifacts" / "work" / "download" / "mine").exists()
    assert not list(out.parent.glob(".*"))


def test_what_goes_wrong_is_one_line_and_an_exit_status(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.png").write_bytes(png())
    (tmp_path / "own" / "a.jsonl").write_text(json.dumps({"image": "b.png", "entries": []}))
    given = _params(tmp_path, source="folder", path="own", format="records_jsonl", licence="x")
    command = _command(given, tmp_path)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "no file 'b.png'" in done.stderr and "max_bad" in done.stderr


def test_type_size_changes_the_letters_and_not_the_default_pages():
    given = {"source": "synthetic", "split": "calibration", "samples": 4, "seed": 0}
    default, plain, small = (
        [record.image.tobytes() for record in download.synthetic_records(SyntheticParams.model_validate(given | more))]
        for more in ({}, {"type_size": "plain"}, {"type_size": "small"})
    )
    assert default == plain and not set(plain) & set(small)
