"""DVC and MLflow on an S3 server that answers, fails, is slow, or goes away in the middle."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import logging
import subprocess
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer

from tests.repository import Repository, copy_repository
from tests.servers import registry_server

KEY, SECRET = "canarykey0001", "canary-secret-0002"
# One attempt, so that a fault is seen at once; no ~/.aws of the user, no metadata service of a cloud machine.
ENVIRONMENT = {
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "HOME": "/nonexistent",
}
CREDENTIALS = ENVIRONMENT | {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}


class Proxy(ThreadingHTTPServer):
    """In front of an S3 server. `fault(method, path)` says what happens to a request: None, or what goes wrong."""

    daemon_threads = True

    def __init__(self, target):
        super().__init__(("127.0.0.1", 0), Handler)
        self.target, self.fault, self.lock = target, lambda method, path: None, threading.Lock()
        self.hanging, self.released = threading.Event(), threading.Event()
        self.url = "http://{}:{}".format(*self.server_address)

    def handle_error(self, request, client_address):
        """Quiet: clients that are killed break their connections."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_any(self):
        with self.server.lock:
            fault = self.server.fault(self.command, self.path)
        length = int(self.headers.get("Content-Length", 0))
        if fault == "cut":  # half of a body, then nothing more
            self.rfile.read(length // 2)
            return self.drop()
        body = self.rfile.read(length)
        if fault == "fails":
            return self.answer(500, {}, b"<Error><Code>InternalError</Code><Message>no</Message></Error>")
        if fault == "hangs":
            self.server.hanging.set()
            self.server.released.wait(60)
            return self.drop()
        if fault == "slow":
            time.sleep(0.1)
        upstream = http.client.HTTPConnection(*self.server.target, timeout=60)
        try:
            upstream.request(self.command, self.path, body, dict(self.headers.items()))
            reply = upstream.getresponse()
            content = reply.read()
        finally:
            upstream.close()
        if fault == "unanswered":  # done, but the client never learns of it
            return self.drop()
        headers = {k: v for k, v in reply.getheaders() if k.lower() not in ("connection", "transfer-encoding")}
        self.answer(reply.status, headers, content, half=fault == "half")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    def answer(self, status, headers, content, half=False):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if half else content)
        if half:
            self.drop()

    def drop(self):
        self.close_connection = True

    def log_message(self, *_):
        pass


class Storage:
    """Buckets of an in-memory S3 server, and a proxy in front of it."""

    def __init__(self, target):
        self.client = boto3.client(
            "s3", endpoint_url="http://{}:{}".format(*target), aws_access_key_id=KEY, aws_secret_access_key=SECRET
        )
        self.proxy = Proxy(target)
        threading.Thread(target=self.proxy.serve_forever, daemon=True).start()

    def objects(self, bucket):
        """Contents of every object by its key."""
        listed = self.client.list_objects_v2(Bucket=bucket).get("Contents", [])
        return {one["Key"]: self.client.get_object(Bucket=bucket, Key=one["Key"])["Body"].read() for one in listed}

    def check(self, bucket):
        """Every object is whole: a file's name is the hash of its content, a run names its outputs."""
        for key, content in self.objects(bucket).items():
            kind, *rest = key.split("/")[1:]
            if kind == "files":
                assert hashlib.md5(content).hexdigest() == "".join(rest[-2:]).removesuffix(".dir"), key
            else:
                assert kind == "runs" and yaml.safe_load(content)["outs"], key


@pytest.fixture(scope="module")
def storage():
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line per request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    storage = Storage(server.get_host_and_port())
    yield storage
    storage.proxy.shutdown()
    storage.proxy.server_close()
    server.stop()


@pytest.fixture(scope="module")
def origin(tmp_path_factory, repository_template, storage):
    """A pipeline with one model that ran once, in Git, whose remote is the bucket `data` behind the proxy."""
    pipeline = copy_repository(repository_template, tmp_path_factory.mktemp("storage"), **CREDENTIALS)
    pipeline.set_models("one")
    assert set(pipeline.repro().values()) == {1}
    with open(pipeline.root / ".dvc" / "config", "a", encoding="utf-8") as config:
        config.write("remote = storage\n['remote \"storage\"']\nurl = s3://data/dvc\n")
        config.write(f"endpointurl = {storage.proxy.url}\n")
    return pipeline


@pytest.fixture
def pushing(origin, storage, tmp_path):
    """A copy of that pipeline; its bucket is empty, and no request fails."""
    storage.proxy.fault = lambda method, path: None
    with suppress(storage.client.exceptions.NoSuchBucket):
        for key in storage.objects("data"):
            storage.client.delete_object(Bucket="data", Key=key)
    storage.client.create_bucket(Bucket="data")
    pipeline = origin.copy(tmp_path / "pushing")
    pipeline.commit("results")
    return pipeline


def files(pipeline):
    """Contents of everything the stages wrote."""
    folder = pipeline.root / "artifacts"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name[0] != "."}


def broken(kind, *, after, method="PUT"):
    """Every request of this method breaks, once `after` of them went well."""
    count = itertools.count()
    return lambda asked, path: kind if asked == method and "/dvc/" in path and next(count) >= after else None


def test_a_fresh_clone_rebuilds_nothing_and_credentials_stay_in_the_environment(pushing, storage, tmp_path):
    without = Repository(pushing.root, pushing.programs, **ENVIRONMENT)
    status, output = without.try_dvc("push")
    assert status != 0 and "Unable to locate credentials" in output and "Traceback" not in output, output
    said = pushing.dvc("push", "--run-cache", "-vv")
    storage.check("data")
    left = [p.read_bytes() for folder in tmp_path.iterdir() for p in folder.rglob("*") if p.is_file()]
    assert left and not any(word.encode() in text for text in [said.encode(), *left] for word in (KEY, SECRET))

    clone = pushing.clone(tmp_path / "clone")
    assert files(clone).keys() < files(pushing).keys()
    assert clone.repro("--pull") == Counter()
    assert files(clone) == files(pushing)

    looking = pushing.clone(tmp_path / "looking")
    assert looking.repro("--pull", "--allow-missing", "evaluate@one", "profile@one") == Counter()
    assert files(looking) == files(pushing.clone(tmp_path / "git"))  # and nothing was downloaded

    # Without dvc.lock it is the run cache that knows.
    (looking.root / "dvc.lock").unlink()
    assert looking.repro("--pull", "download@calibration", "download@evaluation") == Counter()
    assert (looking.root / "artifacts/datasets/evaluation.parquet").exists()


def test_pushes_that_break_leave_nothing_half_there_and_a_later_one_completes(pushing, storage):
    counts = [0]  # the entries of the run cache are sent again every time
    for kind, after in (("fails", 4), ("cut", 9), ("hangs", 13), ("unanswered", 8)):
        storage.proxy.fault = broken(kind, after=after)
        with pushing.start("push", "--run-cache", stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            if kind == "hangs":
                assert storage.proxy.hanging.wait(60)
                process.kill()
            output, _ = process.communicate()
        storage.proxy.released.set()
        assert process.returncode != 0 and "Traceback" not in output, output
        assert kind == "hangs" or "ERROR: " in output
        storage.check("data")
        counts.append(len(storage.objects("data")))

    storage.proxy.fault = lambda method, path: "slow"
    pushing.dvc("push", "--run-cache")
    storage.check("data")
    counts[-1] = len(storage.objects("data"))  # "unanswered" may have stored everything
    assert counts == sorted(set(counts)), counts
    cache = pushing.root / ".dvc" / "cache"
    here = {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()}
    there = {key.removeprefix("dvc/") for key in storage.objects("data")}
    in_git = [(pushing.root / name).read_bytes() for name in pushing.git("ls-files", "artifacts").split()]
    hashes = {hashlib.md5(content).hexdigest() for content in in_git}  # of metrics and plots, which DVC leaves to Git
    assert there <= here and {"".join(name.split("/")[-2:]) for name in here - there} <= hashes


def test_a_download_that_breaks_off_is_not_taken_for_a_file(pushing, storage, tmp_path):
    pushing.dvc("push")
    clone = pushing.clone(tmp_path / "clone")
    before = files(clone)
    storage.proxy.fault = broken("half", after=2, method="GET")
    status, output = clone.try_dvc("pull")
    assert status != 0 and "Traceback" not in output, output
    wanted = files(pushing)
    assert all(content == wanted[name] for name, content in files(clone).items())
    assert len(files(clone)) < len(wanted) and before.items() <= files(clone).items()

    storage.proxy.fault = lambda method, path: None
    clone.dvc("pull")
    assert files(clone) == wanted and clone.repro() == Counter()


def test_the_registry_keeps_its_files_on_s3(storage, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # only the server needs them
        monkeypatch.delenv(name, raising=False)
    storage.client.create_bucket(Bucket="registry")
    storage.proxy.fault = lambda method, path: "slow"
    content = bytes(range(256)) * 64
    (tmp_path / "table.bin").write_bytes(content)
    environment = CREDENTIALS | {"HOME": str(tmp_path), "MLFLOW_S3_ENDPOINT_URL": storage.proxy.url}
    with registry_server(tmp_path, "--artifacts", "s3://registry/files", **environment) as (uri, _):
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        run = client.create_run(client.create_experiment("storage")).info.run_id
        client.log_artifact(run, str(tmp_path / "table.bin"), "scores")
        ((key, stored),) = storage.objects("registry").items()
        assert key.startswith("files/") and key.endswith("scores/table.bin") and stored == content
        path = client.download_artifacts(run, "scores/table.bin", str(tmp_path))
        assert Path(path).read_bytes() == content
    left = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
    assert not any(SECRET.encode() in text for text in left)
