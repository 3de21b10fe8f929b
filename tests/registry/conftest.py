"""Small, valid results of models, a real MLflow server, and a wire to it that can be cut."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from sparsemm import allocate
from sparsemm.chase.stage import write_curve
from sparsemm.files import write_json
from sparsemm.inputs import FOLDER, settings
from sparsemm.params import load_params
from sparsemm.registry.client import connect, default_store
from sparsemm.registry.lockfile import md5_of
from sparsemm.scores import ScoreTable
from tests.recipes import recipe
from tests.servers import free_port, registry_server

ROOT = Path(__file__).parent.parent.parent
PASSWORD = "canary-6f1d-password"
OUTS = {
    "align": ["align/{}.json"],
    "chase": ["scores/{}.safetensors", "scores/{}.json", "scores/{}.csv", "scores/{}.covariates.csv"],
    "allocate": ["budgets/{}.json"],
    "evaluate": ["evaluate/{}.json", "evaluate/{}.csv"],
    "profile": ["profile/{}.json", "profile/{}.csv"],
}
DEPS = {
    "align": [],
    "chase": ["align/{}.json"],
    "allocate": ["scores/{}.safetensors"],
    "evaluate": ["scores/{}.safetensors", "budgets/{}.json"],
    "profile": ["scores/{}.safetensors"],
}
RAN_WITH = {
    "align": ["chase"],
    "chase": ["chase"],
    "allocate": ["allocate"],
    "evaluate": ["chase.prompt", "evaluate"],
    "profile": ["allocate", "evaluate.seed", "profile"],
}


class Workspace:
    """A folder as `dvc repro` leaves it, with the numbers a test wants."""

    def __init__(self, root, *keys):
        self.root = root
        raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        raw["models"] = {key: {"checkpoint": f"a/{key}", "revision": "r1", "family": "qwen2_vl"} for key in keys}
        self.raw = raw
        for key in keys:
            self.ran(key)

    @property
    def params(self):
        return load_params(self.root / "params.yaml")

    def ran(self, key, revision="r1", accuracy=0.9, noise=0.0, seed=0, shape=(5, 4)):
        """Write what the stages of one model write, and its entries in dvc.lock."""
        self.raw["models"][key]["revision"] = revision
        (self.root / "params.yaml").write_text(yaml.safe_dump(self.raw), encoding="utf-8")
        folder = self.root / "artifacts"
        rng = np.random.default_rng(seed)
        heads = np.linspace(0.1, 1.0, shape[0] * shape[1]).reshape(shape)
        per_sample = heads * (1 + noise * rng.standard_normal((6, *shape)))
        header = {"model": f"a/{key}", "revision": revision, "fingerprint": f"print-{key}", "num_kv_heads": 2}
        table = ScoreTable.from_samples(np.abs(per_sample), np.ones(shape, np.int64), header)
        table.save(folder / "scores" / f"{key}.safetensors")
        write_curve(folder / "scores" / f"{key}.csv", table)
        (folder / "scores" / f"{key}.covariates.csv").write_text("covariate,bin\nkind,word\n", encoding="utf-8")
        write_json(folder / "scores" / f"{key}.json", {"split_half": 0.99, "top_share": {"1%": 0.1}})
        write_json(folder / "align" / f"{key}.json", {"samples": 6, "share_aligned": 0.7})
        allocate.run(self.params, key, self.root)
        budgets = {str(budget): accuracy for budget in self.raw["allocate"]["budgets"]}
        tasks = {
            "read": {"full": {"all": 0.95}, "sparsemm": budgets, "sparsemm+peak": budgets},
            "qa": {"full": {"all": 0.9}, "sparsemm": budgets},
        }
        write_json(folder / "evaluate" / f"{key}.json", tasks)
        (folder / "evaluate" / f"{key}.csv").write_text(f"model,value\n{key},{accuracy}\n", encoding="utf-8")
        (folder / "profile").mkdir(exist_ok=True)
        columns = "model,method,prompt_length,prefill_ms,decode_ms_per_token,kept_bytes"
        (folder / "profile" / f"{key}.csv").write_text(f"{columns}\n{key},full,128,5.0,1.0,64\n", encoding="utf-8")
        write_json(folder / "profile" / f"{key}.json", {"device": "x86_64", "threads": 1})
        self.lock(key)

    def lock(self, key):
        """Write the entries of one model as DVC would, from the files and params that are there."""
        path = self.root / "dvc.lock"
        value = yaml.safe_load(path.read_text()) if path.is_file() else {"schema": "2.0", "stages": {}}
        for stage in OUTS:
            deps, outs, used = [[name.format(key) for name in some[stage]] for some in (DEPS, OUTS, RAN_WITH)]
            entry = self._entry(f"sparsemm {stage} {key}", [*deps, self.inputs(stage, key)], outs, used)
            value["stages"][f"{stage}@{key}"] = entry
        path.write_text(yaml.safe_dump(value), encoding="utf-8")

    def inputs(self, stage, key):
        """Write what a stage depends on besides data and code, and return the name of the file."""
        name = f"{stage}/{key}.json"
        write_json(self.root / FOLDER / name, {"code": {}} | settings(self.params)[name])
        return f"{FOLDER.name}/{name}"

    def tuned(self, key, verdict="better", **options):
        """Write what the tune stage of one model writes, and its entry in dvc.lock."""
        folder = self.root / "artifacts"
        table = ScoreTable.load(folder / "scores" / f"{key}.safetensors")
        recipe(table, verdict, **options).save(folder / "recipes" / f"{key}.json")
        (folder / "recipes" / f"{key}.csv").write_text("model,setting\n", encoding="utf-8")
        path = self.root / "dvc.lock"
        value = yaml.safe_load(path.read_text())
        deps = [f"scores/{key}.safetensors", self.inputs("tune", key)]
        outs = [f"recipes/{key}.json", f"recipes/{key}.csv"]
        value["stages"][f"tune@{key}"] = self._entry(f"sparsemm tune {key}", deps, outs, ["tune"])
        path.write_text(yaml.safe_dump(value), encoding="utf-8")

    def also(self, key, dataset):
        """Write what the stages over a further data set write, and their entries in dvc.lock."""
        scores, align = (f"{stage}/also/{key}/{dataset}" for stage in ("scores", "align"))
        files = [f"{scores}{end}" for end in (".safetensors", ".json", ".csv", ".covariates.csv")]
        used = [f"robustness.{dataset}", "chase"]
        for name in (*files, f"{align}.parquet", f"{align}.json"):
            (self.root / "artifacts" / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / "artifacts" / name).write_text(f"{name} over {dataset}")
        path = self.root / "dvc.lock"
        value = yaml.safe_load(path.read_text())
        command = f"{key} --dataset {dataset}"
        inputs = [self.inputs(stage, key) for stage in ("align", "chase")]
        made = self._entry(f"sparsemm align {command}", inputs[:1], [f"{align}.parquet", f"{align}.json"], used)
        value["stages"][f"align-also@{key}-{dataset}"] = made
        made = self._entry(f"sparsemm chase {command}", [f"{align}.parquet", inputs[1]], files, used)
        value["stages"][f"chase-also@{key}-{dataset}"] = made
        path.write_text(yaml.safe_dump(value), encoding="utf-8")

    def _entry(self, command, deps, outs, used):
        def listed(names):
            paths = [f"artifacts/{name}" for name in names]
            return [{"path": one, "hash": "md5", "md5": md5_of(self.root / one)} for one in paths]

        ran_with = {}
        for dotted in used:
            inner = self.raw
            for part in dotted.split("."):
                inner = inner[part]
            ran_with[dotted] = inner
        params = {"params.yaml": ran_with}
        return {"cmd": command, "deps": listed(deps), "params": params, "outs": listed(outs)}


@pytest.fixture
def workspace(tmp_path):
    """`workspace(*keys)`: a new one."""
    numbers = iter(range(100))

    def make(*keys):
        root = tmp_path / f"workspace-{next(numbers)}"
        root.mkdir()
        return Workspace(root, *keys)

    return make


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No registry and no cache but the test's own."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def _empty_store(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    connect(default_store(root), create=True)
    return root / "artifacts" / "registry" / "mlflow.db"


@pytest.fixture
def local(workspace, _empty_store):
    """`local(*keys)`: a workspace with an empty SQLite registry of its own, whose migrations are done."""

    def make(*keys):
        made = workspace(*keys)
        target = made.root / "artifacts" / "registry" / "mlflow.db"
        target.parent.mkdir(parents=True)
        shutil.copyfile(_empty_store, target)
        return made

    return make


class Wire:
    """A TCP forwarder that can be cut: now, or when so many requests have passed."""

    def __init__(self, target):
        self.target, self.port, self.left, self.listener, self.open = target, free_port(), None, None, []
        self.uri = f"http://127.0.0.1:{self.port}"

    def mend(self, requests=None):
        self.left = requests
        self.listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def cut(self):
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for one in self.open:
            one.close()
        self.open = []

    def _accept(self, listener):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            self.open += [client, server]
            threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _pump(self, source, sink, counts):
        try:
            while data := source.recv(65536):
                if counts and self.left is not None and data.split(b" ", 1)[0] in (b"GET", b"POST", b"PUT", b"DELETE"):
                    self.left -= 1
                    if self.left < 0:
                        return self.cut()
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for one in (source, sink):
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                one.close()


@pytest.fixture(scope="session")
def _server(tmp_path_factory):
    root = tmp_path_factory.mktemp("server")
    with registry_server(root, "--auth", MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD) as (uri, process):
        yield SimpleNamespace(
            root=root,
            port=int(uri.rpartition(":")[2]),
            uri=uri,
            pid=process.pid,
            log=root / "log",
            files=root / "artifacts" / "registry" / "files",
        )


@pytest.fixture
def server(_server, monkeypatch):
    """A real server with basic auth, and this process's credentials for it."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    return _server


@pytest.fixture
def wire(server, monkeypatch):
    """A wire to the server, mended; a request that fails is not repeated."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    made = Wire(server.port)
    made.mend()
    yield made
    made.cut()


@pytest.fixture
def script(server):
    """Run processes.py with these arguments; the list of what its processes reported."""

    def run(*arguments):
        command = [sys.executable, str(Path(__file__).parent / "processes.py"), *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        options = {"env": environment, "cwd": ROOT, "capture_output": True, "text": True, "timeout": 300}
        done = subprocess.run(command, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    return run
