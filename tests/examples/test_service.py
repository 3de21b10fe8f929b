"""The example service: a real server on a free port, a real small checkpoint, clients that behave and that do not."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import torch
import uvicorn
import yaml
from PIL import Image

import sparsemm
from examples.service.app import create_app
from examples.service.settings import Settings
from sparsemm.datasets.synthetic import PageStyle, draw_record, questions
from sparsemm.errors import ParamsError, ScoreTableError
from sparsemm.files import sha256_file, write_json
from sparsemm.models import fingerprint
from sparsemm.prompts import build_inputs
from sparsemm.registry import manifest
from sparsemm.registry.client import connect
from sparsemm.scores import ScoreTable

ROOT = Path(__file__).parents[2]
MODEL = "tiny-qwen2-vl"
BUDGET = 12
WIDE = PageStyle(columns=2, filled=(8, 12))
RECORDS = [draw_record("evaluation", 0, i, style) for i, style in enumerate([PageStyle()] * 3 + [WIDE])]
READ = "Read the page."


def make_table(path, fitting, seed):
    """Save a score table of the right shape with random scores."""
    per_sample = np.random.default_rng(seed).random((2, 6, 16)) ** 4
    header = {"model": MODEL, "revision": str(seed), "fingerprint": fitting, "num_kv_heads": 4}
    ScoreTable.from_samples(per_sample, np.zeros((6, 16), np.int64), header).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny):
    """params.yaml with absolute paths, and two score tables."""
    folder = tmp_path_factory.mktemp("service")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["models"][MODEL]["checkpoint"] = str(ROOT / params["models"][MODEL]["checkpoint"])
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    for seed in (1, 2):
        make_table(folder / f"{seed}.safetensors", fingerprint(tiny(MODEL)[0].config), seed)
    make_table(folder / "foreign.safetensors", "0" * 64, 3)
    return folder


@contextmanager
def served(folder, **changes):
    """A service on a free port: its address (`url`), a client, and its app's `state`."""
    values = {"model": MODEL, "params": folder / "params.yaml", "scores": str(folder / "1.safetensors")}
    app = create_app(Settings(**{**values, "budget": BUDGET, "refresh_seconds": 3600, **changes}))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        assert server.started
        address = server.servers[0].sockets[0].getsockname()
        with httpx.Client(base_url="http://{}:{}".format(*address), timeout=20) as client:
            yield SimpleNamespace(client=client, address=address, state=app.state)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def service(folder):
    with served(folder, max_upload_bytes=200_000, max_image_pixels=40_000, max_question_characters=100) as service:
        yield service


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


class Gate:
    """Holds up the model before every forward until it is let through; notes the batch size of each."""

    def __init__(self, service):
        self.permits, self.open, self.batches = threading.Semaphore(0), False, []
        self.hook = service.state.engine.model.register_forward_pre_hook(self._wait, with_kwargs=True)

    def _wait(self, module, args, options):
        self.batches.append(len(options["input_ids"]))
        if not self.open:
            self.permits.acquire()

    def let(self, steps):
        self.permits.release(steps)

    def let_all(self):
        self.open = True
        self.permits.release()


@pytest.fixture
def gate(service):
    until(lambda: service.state.in_flight == 0)
    gate = Gate(service)
    yield gate
    gate.hook.remove()
    gate.let_all()
    until(lambda: service.state.in_flight == 0)


def png(image, kind="PNG", **options):
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def form(question=READ, image=None):
    content = png(RECORDS[0].image) if image is None else image
    return {"data": {"question": question}, "files": {"image": ("page.png", content)}}


def parse(stream):
    """Server-sent events -> [(event, data)]."""
    blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in stream.strip().split("\n\n")]
    return [(block.get("event", "message"), json.loads(block["data"])) for block in blocks]


def direct(tiny, folder, image, question, table=1, budget=BUDGET):
    """(text, slots kept of the prompt) from `model.generate` itself."""
    model, processor = tiny(MODEL)
    scores = ScoreTable.load(folder / f"{table}.safetensors")
    inputs = build_inputs(processor, [[image]], [question])
    cache = sparsemm.compressed_cache(model, "sparsemm", budget, scores, window=4)
    with torch.inference_mode():
        out = model.generate(**inputs, past_key_values=cache, do_sample=False, max_new_tokens=128)
    text = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text, sum(int(slots.sum()) for slots in cache.budgets())


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


def test_a_photograph_on_its_side_is_turned(service):
    side, exif = RECORDS[0].image.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # rotate by 270 degrees to see it
    turned = [png(side), png(side, exif=exif), png(RECORDS[0].image)]
    texts = [service.client.post("/answer", **form(READ, content)).json()["text"] for content in turned]
    assert texts[0] != texts[1] == texts[2]


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


def test_requests_that_wait_together_are_one_batch(service, gate, tiny, folder):
    asked = [(record.image, question) for record in RECORDS for question in (READ, questions(record)[0].prompt)]
    with ThreadPoolExecutor(len(asked)) as pool:
        first = pool.submit(service.client.post, "/answer", **form(asked[0][1], png(asked[0][0])))
        until(lambda: gate.batches == [1])
        rest = [pool.submit(service.client.post, "/answer", **form(q, png(image))) for image, q in asked[1:]]
        until(lambda: len(service.state.engine._line) == len(rest))
        gate.let_all()
        texts = [reply.result().json()["text"] for reply in [first, *rest]]
    assert texts == [direct(tiny, folder, image, question)[0] for image, question in asked]
    assert set(gate.batches) == {1, len(rest)}


def test_one_bad_request_does_not_take_its_batch_with_it(service, gate, tiny, folder):
    thin = png(Image.new("RGB", (1, 300)))  # the processor refuses this shape
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(service.client.post, "/answer", **form())
        until(lambda: gate.batches == [1])
        bad = pool.submit(service.client.post, "/answer", **form(READ, thin))
        good = pool.submit(service.client.post, "/answer", **form())
        until(lambda: len(service.state.engine._line) == 2)
        gate.let_all()
    assert bad.result().status_code == 422 and "aspect ratio" in bad.result().json()["detail"]
    expected = direct(tiny, folder, RECORDS[0].image, READ)[0]
    assert first.result().json()["text"] == good.result().json()["text"] == expected
    events = parse(service.client.post("/stream", **form(READ, thin)).text)
    assert [name for name, _ in events] == ["error"]


def test_a_stream_that_is_left_stops_the_work(service, gate):
    with service.client.stream("POST", "/stream", **form()) as reply:
        gate.let(3)
        lines = reply.iter_lines()  # dropping it would end the stream
        next(lines)
        until(lambda: len(gate.batches) == 4)
    until(lambda: service.state.in_flight == 0)
    gate.let_all()
    until(lambda: not service.state.engine._running)
    assert len(gate.batches) == 4  # three that were let through, and the one that waited


def raw(service, content_length=None, body=b""):
    """A connection that has sent a multipart request for /answer, or its beginning."""
    request = httpx.Request("POST", f"http://{service.address[0]}/answer", **form())
    whole = request.read()
    head = f"POST /answer HTTP/1.1\r\nHost: x\r\nContent-Type: {request.headers['content-type']}\r\n"
    head += f"Content-Length: {len(whole) if content_length is None else content_length}\r\n\r\n"
    connection = socket.create_connection(service.address, timeout=20)
    connection.sendall(head.encode() + (whole if content_length is None else body))
    return connection


def test_an_answer_no_one_waits_for_stops_the_work(service, gate):
    with raw(service):
        until(lambda: gate.batches == [1])
    until(lambda: service.state.in_flight == 0)
    gate.let_all()
    until(lambda: not service.state.engine._running)
    assert len(gate.batches) == 1


def test_one_that_leaves_while_it_waits_is_never_begun(service, gate):
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(service.client.post, "/answer", **form())
        until(lambda: gate.batches == [1])
        with raw(service):
            until(lambda: len(service.state.engine._line) == 1)
        until(lambda: service.state.in_flight == 1)
        gate.let_all()
        assert first.result().status_code == 200
    assert set(gate.batches) == {1}
    steps = len(gate.batches)
    assert service.client.post("/answer", **form()).status_code == 200
    assert len(gate.batches) == 2 * steps


def test_a_body_that_breaks_off_leaves_nothing(service):
    with raw(service, 5000, b"half"):
        until(lambda: service.state.in_flight == 1)
    until(lambda: service.state.in_flight == 0)


def damaged():
    content = bytearray(png(RECORDS[0].image))
    content[60:] = content[60 : len(content) // 2]
    return bytes(content)


@pytest.mark.parametrize(
    "request_, status, says",
    [
        (form("  \n"), 422, "empty"),
        (form("x" * 101), 413, "longer"),
        (form("What is <|image_pad|>?"), 422, "special token"),
        (form(image=b"not an image"), 415, "none of"),
        (form(image=b""), 415, "none of"),
        (form(image=png(RECORDS[0].image, "GIF")), 415, "none of"),
        (form(image=damaged()), 400, "damaged"),
        (form(image=png(Image.new("L", (1000, 1000)))), 413, "pixels"),
        (form(image=png(Image.new("1", (30_000, 30_000)))), 413, "pixels"),
        (form(image=bytes(200_000)), 413, "larger than 200000 bytes"),
        ({"content": iter([bytes(100_000)] * 3), "headers": {"content-type": form.__name__}}, 415, "multipart"),
        ({"content": iter([b"--x\r\n"] + [bytes(100_000)] * 3)}, 413, "larger"),
        ({"content": b""}, 400, "complete"),
        ({"content": b"--x\r\nContent-Disposition: form-data; name=question\r\n\r\nRead"}, 400, "complete"),
        ({"content": b"--x--\r\n"}, 400, "one file named image"),
        ({"json": {"question": READ}}, 415, "multipart"),
        ({"data": {"question": READ}}, 415, "multipart"),
        ({"data": {"question": READ}, "files": {"picture": b"a"}}, 400, "one file named image"),
        ({"files": [("image", b"a"), ("image", b"b"), ("question", (None, READ))]}, 400, "one file named image"),
        ({"files": [(f"part{i}", b"a") for i in range(9)]}, 413, "parts"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_its_reason(service, request_, status, says):
    if "content" in request_ and "headers" not in request_:
        request_ = request_ | {"headers": {"content-type": "multipart/form-data; boundary=x"}}
    for path in ("/answer", "/stream"):
        if not isinstance(request_.get("content", b""), bytes) and path == "/stream":
            continue  # an iterator is used up
        reply = service.client.post(path, **request_)
        assert (reply.status_code, says in reply.json()["detail"]) == (status, True), reply.text
    assert service.client.get("/health").json()["in_flight"] == 0


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
        assert service.client.post("/answer", **form()).status_code == 200
        with raw(service, 5000, b"half") as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_a_failure_of_the_model_is_told_and_survived(service, caplog):
    def fail(*_):
        raise RuntimeError("out of order")

    hook = service.state.engine.model.register_forward_pre_hook(fail)
    try:
        assert service.client.post("/answer", **form()).status_code == 500
        events = parse(service.client.post("/stream", **form()).text)
        assert events == [("error", {"detail": "the model failed"})]
    finally:
        hook.remove()
    assert "out of order" in caplog.text
    assert service.client.post("/answer", **form()).status_code == 200


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
            until(lambda: len(service.state.engine._line) == 1)
            (folder / "new").write_bytes((folder / "2.safetensors").read_bytes())
            (folder / "new").replace(champion)
            until(lambda: service.client.get("/health").json()["scores"]["digest"] == digests[2])
            later = pool.submit(service.client.post, "/answer", **form())
            until(lambda: len(service.state.engine._line) == 2)
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


# MLflow's own use of SQLAlchemy.
def test_it_follows_a_registry_and_starts_without_one(folder, registry_server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with registry_server(tmp_path) as (uri, server):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        client = connect(uri)
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


def test_settings_come_from_the_environment_and_are_checked():
    environment = {"SPARSEMM_SERVICE_MODEL": MODEL, "SPARSEMM_SERVICE_PORT": "9000", "PATH": "/bin"}
    settings = Settings.from_environment(environment)
    assert (settings.host, settings.port) == ("127.0.0.1", 9000)
    assert settings.scores == f"models:/visual-heads.{MODEL}@champion"
    bad = {"SPARSEMM_SERVICE_PORT": "canary-1", "SPARSEMM_SERVICE_TOKEN": "canary-2"}
    with pytest.raises(ParamsError) as caught:
        Settings.from_environment(bad)
    for name in ("SPARSEMM_SERVICE_MODEL", "SPARSEMM_SERVICE_PORT", "SPARSEMM_SERVICE_TOKEN"):
        assert name in str(caught.value)
    assert "canary" not in str(caught.value)


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
        assert reply.status_code == 200
        process.terminate()
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    said = (tmp_path / "log").read_text()
    assert "/answer" in said and "shutdown complete" in said and "canary" not in said and "Traceback" not in said
