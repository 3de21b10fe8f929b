"""The example service on a free port, a gate before its model, and clients that behave and that do not."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import torch
import uvicorn

import sparsemm
from examples.service.app import create_app
from examples.service.settings import Settings
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.prompts import build_inputs
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


def direct(tiny, folder, image, question, table=1, budget=BUDGET, method="sparsemm", **options):
    """(text, slots kept of the prompt) from `model.generate` itself."""
    model, processor = tiny(MODEL)
    scores = ScoreTable.load(folder / f"{table}.safetensors")
    inputs = build_inputs(processor, [[image]], [question])
    cache = sparsemm.compressed_cache(model, method, budget, scores, **{"window": 4, **options})
    with torch.inference_mode():
        out = model.generate(**inputs, past_key_values=cache, do_sample=False, max_new_tokens=128)
    text = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text, sum(int(slots.sum()) for slots in cache.budgets())


def raw(service, content_length=None, body=b""):
    """A connection that has sent a multipart request for /answer, or its beginning."""
    request = httpx.Request("POST", f"http://{service.address[0]}/answer", **form())
    whole = request.read()
    head = f"POST /answer HTTP/1.1\r\nHost: x\r\nContent-Type: {request.headers['content-type']}\r\n"
    head += f"Content-Length: {len(whole) if content_length is None else content_length}\r\n\r\n"
    connection = socket.create_connection(service.address, timeout=20)
    connection.sendall(head.encode() + (whole if content_length is None else body))
    return connection
