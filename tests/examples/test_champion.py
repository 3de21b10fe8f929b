"""Which score table the example service answers with, as tables are promoted, damaged and out of reach."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from examples.service.app import create_app
from examples.service.champion import Follower
from examples.service.settings import Settings
from sparsemm.errors import RegistryError, ScoreTableError
from sparsemm.files import sha256_file, write_json
from sparsemm.registry import manifest
from sparsemm.registry.client import connect
from tests.examples.services import MODEL, READ, RECORDS, Gate, direct, form, served, until
from tests.servers import registry_server


def test_a_promotion_is_followed_and_running_requests_keep_their_table(folder, tiny):
    champion = folder / "champion.safetensors"
    champion.write_bytes((folder / "1.safetensors").read_bytes())
    digests = {seed: sha256_file(folder / f"{seed}.safetensors") for seed in (1, 2)}
    with served(folder, scores=str(champion), refresh_seconds=0.05) as service:
        gate = Gate(service)
        with ThreadPoolExecutor(3) as pool:
            running = pool.submit(service.client.post, "/answer", **form())
            until(lambda: gate.batches == [1])
            waiting = pool.submit(service.client.post, "/answer", **form())
            until(lambda: len(service.state.engine._queue) == 1)
            (folder / "new").write_bytes((folder / "2.safetensors").read_bytes())
            (folder / "new").replace(champion)
            until(lambda: service.client.get("/health").json()["scores"]["digest"] == digests[2])
            later = pool.submit(service.client.post, "/answer", **form())
            until(lambda: len(service.state.engine._queue) == 2)
            gate.let_all()
        for reply, seed in ((running, 1), (waiting, 1), (later, 2)):
            text, _ = direct(tiny, folder, RECORDS[0].image, READ, table=seed)
            assert (reply.result().json()["score_digest"], reply.result().json()["text"]) == (digests[seed], text)
        # Damaged, or another model's: the table in use stays.
        for content in (b"damaged", (folder / "foreign.safetensors").read_bytes()):
            champion.write_bytes(content)
            until(lambda: service.client.get("/health").json()["check_failed"] == "ScoreTableError")
            assert service.client.post("/answer", **form()).json()["score_digest"] == digests[2]
            champion.write_bytes((folder / "2.safetensors").read_bytes())
            until(lambda: service.client.get("/health").json()["check_failed"] is None)


def publish(client, folder, number):
    """Register table `number` as the champion, as `sparsemm publish` and `sparsemm promote` do it."""
    name, published = f"visual-heads.{MODEL}", folder / f"published-{number}"
    table = published / "scores" / f"{MODEL}.safetensors"
    table.parent.mkdir(parents=True)
    shutil.copy(folder / f"{number}.safetensors", table)
    about = {"model": name, "key": MODEL, "stage_hash": str(number), "table": f"scores/{MODEL}.safetensors"}
    write_json(published / manifest.NAME, manifest.build(published, **about))
    if number == 1:
        client.create_registered_model(name)
        client.create_experiment("service")
    run = client.create_run(client.get_experiment_by_name("service").experiment_id).info.run_id
    client.log_artifacts(run, str(published), manifest.FOLDER)
    tags = {"table_sha256": sha256_file(table), "manifest_sha256": sha256_file(published / manifest.NAME)}
    version = client.create_model_version(name, f"runs:/{run}/{manifest.FOLDER}", run_id=run, tags=tags)
    client.set_registered_model_alias(name, "champion", version.version)


def test_it_follows_a_registry_and_starts_without_one(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with registry_server(tmp_path) as (uri, server):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        client = connect(uri)
        with pytest.raises(RegistryError, match="no such version"):  # it answers, so it is not unreachable
            Follower(f"models:/visual-heads.{MODEL}@champion", None, 1.0)
        publish(client, folder, 1)
        with served(folder, scores="", refresh_seconds=0.1) as service:
            assert service.client.post("/answer", **form()).json()["score_version"] == "1"
            publish(client, folder, 2)
            until(lambda: service.client.get("/health").json()["scores"]["version"] == "2")
            answer = service.client.post("/answer", **form()).json()
            assert answer["score_digest"] == sha256_file(folder / "2.safetensors")

            os.killpg(server.pid, signal.SIGSTOP)  # as deaf as a server can be
            until(lambda: service.client.get("/health").json()["check_failed"] == "RegistryUnreachable")
            assert service.client.post("/answer", **form()).json() == answer
        with served(folder, scores="", refresh_seconds=0.1) as service:
            scores = service.client.get("/health").json()["scores"]
            assert scores["offline"] and scores["version"] == "2"
            assert service.client.post("/answer", **form()).json() == answer
            os.killpg(server.pid, signal.SIGCONT)
            until(lambda: not service.client.get("/health").json()["scores"]["offline"])


def test_another_models_table_does_not_start(folder):
    app = create_app(Settings(model=MODEL, params=folder / "params.yaml", scores=str(folder / "foreign.safetensors")))

    async def start():
        async with app.router.lifespan_context(app):
            raise AssertionError("it started")

    with pytest.raises(ScoreTableError, match="another config"):
        asyncio.run(start())
