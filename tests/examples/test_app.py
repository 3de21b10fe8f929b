"""The example service from outside: its answers, its stream, its limits, its command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from examples.service.app import cache_options
from examples.service.champion import Champion, identify
from sparsemm.datasets.synthetic import questions
from sparsemm.errors import BudgetError
from sparsemm.files import sha256_file
from sparsemm.params import load_params
from sparsemm.scores import ScoreTable
from tests.examples.services import (
    BUDGET,
    MODEL,
    READ,
    RECORDS,
    ROOT,
    Gate,
    direct,
    form,
    parse,
    png,
    raw,
    served,
    until,
)
from tests.recipes import recipe
from tests.servers import free_port


def test_an_answer_is_what_generate_says(service, tiny, folder):
    config = tiny(MODEL)[0].config.get_text_config()
    head_dim = config.hidden_size // config.num_attention_heads
    for record in RECORDS[:2]:
        for question in (READ, questions(record)[0].prompt):
            reply = service.client.post("/answer", **form(question, png(record.image)))
            text, kept = direct(tiny, folder, record.image, question)
            assert reply.status_code == 200 and text
            assert reply.json() == {
                "text": text,
                "tokens": len(tiny(MODEL)[1].tokenizer(text, add_special_tokens=False)["input_ids"]),
                "kept_slots": kept,
                "prompt_slots": 52 * 6 * 4,
                "kept_bytes": kept * 2 * head_dim * 4,
                "score_name": "1.safetensors",
                "score_version": None,
                "score_digest": sha256_file(folder / "1.safetensors"),
            }
            assert kept == BUDGET * 6 * 4


def test_streamed_pieces_are_the_answer(service):
    whole = service.client.post("/answer", **form()).json()
    reply = service.client.post("/stream", **form())
    events = parse(reply.text)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert [name for name, _ in events] == ["message"] * (len(events) - 1) + ["done"]
    assert events[-1][1] == whole
    pieces = [data["text"] for _, data in events[:-1]]
    assert "".join(pieces) == whole["text"] and len(pieces) == whole["tokens"]


def test_a_piece_comes_before_the_next_token_is_made(service, gate):
    with service.client.stream("POST", "/stream", **form()) as reply:
        lines = reply.iter_lines()
        gate.let(1)
        assert "text" in next(lines)  # the second forward still waits at the gate
        gate.let_all()
        assert any(line == "event: done" for line in lines)


def test_too_many_at_once_and_too_late(folder):
    with served(folder, max_requests=2, timeout_seconds=1.0) as service:
        gate = Gate(service)
        with ThreadPoolExecutor(2) as pool:
            late = [pool.submit(service.client.post, path, **form()) for path in ("/answer", "/stream")]
            until(lambda: service.state.in_flight == 2)
            refused = service.client.post("/answer", **form())
            assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
            assert service.client.get("/health").json()["in_flight"] == 2
            assert late[0].result().status_code == 504
            assert parse(late[1].result().text) == [("error", {"detail": "no answer in time"})]
        until(lambda: service.state.in_flight == 0)
        gate.let_all()
        until(
            lambda: service.client.post("/answer", **form()).status_code == 200
        )  # a second is short on a busy machine
        with raw(service, 5000, b"half") as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_the_command_starts_says_nothing_secret_and_stops(folder, tmp_path):
    environment = os.environ | {
        "SPARSEMM_SERVICE_MODEL": MODEL,
        "SPARSEMM_SERVICE_PARAMS": str(folder / "params.yaml"),
        "SPARSEMM_SERVICE_SCORES": str(folder / "1.safetensors"),
        "SPARSEMM_SERVICE_PORT": "0",
        "MLFLOW_TRACKING_PASSWORD": "canary-4d1e",
    }
    command = [sys.executable, "-m", "examples.service.app"]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        until(lambda: process.poll() is not None or "running on" in (tmp_path / "log").read_text(), seconds=120)
        address = re.search(r"http://127\.0\.0\.1:[0-9]+", (tmp_path / "log").read_text())
        reply = httpx.post(f"{address[0]}/answer", **form("What is canary-9b2c?"), timeout=60)
        assert reply.status_code == 200 and "POST /answer: Returns" in httpx.get(address[0]).text
        process.terminate()
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    said = (tmp_path / "log").read_text()
    assert "/answer" in said and "shutdown complete" in said and "canary" not in said and "Traceback" not in said


def test_without_a_registry_the_command_ends_with_one_line_that_says_what_to_do(folder, tmp_path):
    environment = os.environ | {
        "SPARSEMM_SERVICE_MODEL": MODEL,
        "SPARSEMM_SERVICE_PARAMS": str(folder / "params.yaml"),
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}",
        "XDG_CACHE_HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "examples.service.app"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "no earlier look-up is stored" in done.stderr and "sparsemm registry serve" in done.stderr


def test_the_method_is_a_setting(tiny, folder):
    with served(folder, method="snapkv+peak") as service:
        reply = service.client.post("/answer", **form()).json()
    kept = (reply["text"], reply["kept_slots"])
    assert kept == direct(tiny, folder, RECORDS[0].image, READ, method="snapkv+peak")
    with pytest.raises(BudgetError, match="snapkw"):
        cache_options("snapkw", load_params(folder / "params.yaml"))


def test_auto_is_the_method_of_the_champions_recipe_with_its_options(tiny, folder, monkeypatch):
    def load(source, config, offline=False):
        table = ScoreTable.load(source)
        return Champion(table.with_recipe(recipe(table, method="sparsemm+peak", window=6)), identify(source), offline)

    monkeypatch.setattr("examples.service.champion.load", load)
    with served(folder, method="auto") as service:
        reply = service.client.post("/answer", **form()).json()
    kept = (reply["text"], reply["kept_slots"])
    assert kept == direct(tiny, folder, RECORDS[0].image, READ, method="sparsemm+peak", window=6, rho=0.4)
