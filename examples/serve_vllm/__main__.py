"""Serves a champion with vLLM, and replaces it without a pause: `python -m examples.serve_vllm`.

In a copy of the last commit with the smallest settings it makes two score tables of a small checkpoint. It publishes
and promotes the first, starts vLLM's OpenAI server with it, and asks about a page. Then it promotes the second, starts
another server beside the first, and stops the first when its last answer is out. `make vllm` has to have run.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from openai import OpenAI

from examples.end_to_end import free_port, get, start, wait_for
from flows.copies import copy_of_head, smallest
from sparsemm.datasets.records import Record, read_records

KEY = "tiny-qwen2-vl"
FOLDER = Path("build") / "serve-vllm"
PYTHON = Path(".venv-vllm") / "bin" / "python"
SHOWN = ("sparsemm:requests", "sparsemm:compression", "sparsemm:kv_bytes", "sparsemm:info")


def sparsemm(root: Path, *words: str) -> None:
    """Runs the command `sparsemm` in the copy."""
    print(f"$ sparsemm {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "sparsemm.cli", *words], cwd=root, check=True)


def publish(root: Path, samples: int) -> None:
    """Runs the model's stages with so many calibration pages, and makes the result the champion."""
    path = root / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["datasets"]["calibration"]["samples"] = samples
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    stages = ("download", "align", "chase", "allocate", "evaluate", "profile")
    names = [f"{stage}@{'calibration' if stage == 'download' else KEY}" for stage in stages]
    with open(root.parent / "stages.log", "ab") as log:
        command = [sys.executable, "-m", "dvc", "repro", "download@evaluation", *names]
        subprocess.run(command, cwd=root, check=True, stdout=log, stderr=log)
    sparsemm(root, "publish", KEY)
    sparsemm(root, "promote", KEY, "--to", "champion")


def serve(stack: ExitStack, root: Path, name: str, registry: str) -> str:
    """Starts a server with the champion of now, and returns its address once it answers."""
    port = free_port()
    options = {"method": "sparsemm", "scores": f"models:/visual-heads.{KEY}@champion", "budget": 24, "window": 4}
    command = [
        str(PYTHON.absolute()), "-m", "vllm.entrypoints.openai.api_server", "--model", f"data/checkpoints/{KEY}",
        "--served-model-name", KEY, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
        "--block-size", "16", "--max-model-len", "512", "--kv-cache-memory-bytes", str(1 << 28), "--enforce-eager",
        "--additional-config", json.dumps({"sparsemm": options}),
    ]  # fmt: skip
    print(f"$ {' '.join(command[1:3])} ... --additional-config '{command[-1]}'", flush=True)
    with open(root.parent / f"{name}.log", "wb") as log:
        environment = os.environ | {"MLFLOW_TRACKING_URI": registry, "PYTHONPATH": str(root)}
        server = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log)

    def end() -> None:
        if server.poll() is None:
            server.terminate()
            server.wait(60)

    stack.callback(end)
    address = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        if server.poll() is not None:
            raise SystemExit(f"the server ended; see {FOLDER / name}.log")
        return get(f"{address}/health") is not None

    wait_for(f"{name} answers", ready)
    return address


def ask(address: str, record: Record) -> str:
    """Asks about a page, as any client of OpenAI's interface does."""
    png = io.BytesIO()
    record.image.save(png, format="PNG")
    url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    content: Any = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "Read the page."},
    ]
    client = OpenAI(base_url=f"{address}/v1", api_key="none")
    reply = client.chat.completions.create(
        model=KEY, messages=[{"role": "user", "content": content}], max_tokens=40, temperature=0
    )
    return str(reply.choices[0].message.content)


class Traffic(threading.Thread):
    """A client that asks about one page after another, at the address that is current."""

    def __init__(self, address: str, records: list[Record]) -> None:
        super().__init__(daemon=True)
        self.address, self.records, self.answers, self.stopped = address, records, 0, threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        """Asks until it is stopped, or an answer fails."""
        try:
            while not self.stopped.is_set():
                ask(self.address, self.records[self.answers % len(self.records)])
                self.answers += 1
        except Exception as error:
            self.error = error


def show_metrics(address: str) -> None:
    """Prints what the plug-in reports."""
    for line in str(get(f"{address}/metrics")).splitlines():
        if line.startswith(SHOWN):
            print("   ", line)


def main() -> None:
    """Runs the example, and prints what happens and how long it takes."""
    example = "example: python -m examples.serve_vllm"
    argparse.ArgumentParser(prog="python -m examples.serve_vllm", description=__doc__, epilog=example).parse_args()
    if not PYTHON.exists():
        raise SystemExit("vLLM is not installed here: run `make vllm` first")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the ExitStack stops all processes
    shutil.rmtree(FOLDER, ignore_errors=True)
    root = copy_of_head(Path("."), FOLDER / "repository", smallest)
    port = free_port()
    registry = f"http://127.0.0.1:{port}"
    os.environ.setdefault("VLLM_CACHE_ROOT", os.path.expanduser("~/.cache/vllm"))  # before the cache is another one
    os.environ |= {"MLFLOW_TRACKING_URI": registry, "XDG_CACHE_HOME": str(root.parent / "cache"), "DO_NOT_TRACK": "1"}
    with ExitStack() as stack:
        start(stack, root, "registry", "sparsemm.cli", "registry", "serve", "--port", str(port))
        wait_for("registry", lambda: get(f"{registry}/health"))
        publish(root, 32)
        records = read_records(root / "artifacts" / "datasets" / "evaluation.parquet")
        old = stack.enter_context(ExitStack())
        address = serve(old, root, "first server", registry)
        print("answer:", ask(address, records[0]))
        show_metrics(address)
        traffic = Traffic(address, records)
        traffic.start()
        publish(root, 48)
        traffic.address = serve(stack, root, "second server", registry)
        at_once = traffic.answers
        wait_for("requests go to the second server", lambda: traffic.error or traffic.answers > at_once + 1)
        old.close()
        print(f"the first server is stopped; {traffic.answers} requests were answered meanwhile, none failed")
        wait_for("two more answers", lambda: traffic.error or traffic.answers > at_once + 3)
        traffic.stopped.set()
        traffic.join(60)
        if traffic.error is not None:
            raise SystemExit(f"a request failed: {traffic.error}")
        print("answer:", ask(traffic.address, records[0]))
        show_metrics(traffic.address)


if __name__ == "__main__":
    main()
