"""Shows a checkpoint on its way from a watched folder to a service that uses it: `python -m examples.end_to_end`.

In a copy of the last commit with the smallest settings, it starts a Prefect server, a registry, a worker and the
example service on free loopback ports, copies two revisions of a small checkpoint into the watched folder, and stops
everything that it started. With --keep it prints the pages of the servers and leaves them running until Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file, save_file

from flows.copies import copy_of_head, smallest
from sparsemm.datasets.records import read_records
from sparsemm.errors import RegistryError
from sparsemm.registry.lookup import resolve

KEY = "tiny-qwen2-vl"
CHAMPION = f"models:/visual-heads.{KEY}@champion"
FOLDER = Path("build") / "end-to-end"
WATCHED = Path("data") / "incoming" / "watched"
PATIENCE = 3600.0  # seconds for a re-chase, on a busy machine
NEWS = 60.0  # seconds between two lines while it waits


def free_port() -> int:
    """Returns a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str) -> Any:
    """Returns the JSON or text at an address, or None while it does not answer."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            text = reply.read()
    except OSError:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text.decode()


def wait_for(event: str, condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Waits for the condition's first true value, prints how long it takes, and returns the value.

    Raises:
        SystemExit: if there is none in time.
    """
    began, shown = time.monotonic(), 0.0
    while not (value := condition()):
        passed = time.monotonic() - began
        if passed > seconds:
            raise SystemExit(f"{event}: not within {seconds:.0f} s; logs are in {FOLDER}")
        if passed > shown + NEWS:
            shown = passed
            print(f"{event}: not yet after {passed:.0f} s", flush=True)
        time.sleep(0.5)
    print(f"{event}: {time.monotonic() - began:.0f} s", flush=True)
    return value


def start(stack: ExitStack, root: Path, name: str, *arguments: str, **variables: str) -> None:
    """Starts a Python module in a process group that ends with this script; its log is `name`.log beside the copy."""
    with open(root.parent / f"{name}.log", "wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root)} | variables,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def end() -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(child.pid, number)
                child.wait(20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue

    stack.callback(end)


def drop(source: Path, target: Path, seed: int | None) -> None:
    """Copies a checkpoint into the watched folder, config last. With a seed its weights are changed slightly."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            shutil.copy(path, target)
    weights = load_file(source / "model.safetensors")
    if seed is not None:
        noise = np.random.default_rng(seed)
        weights = {
            name: (w * (1 + 1e-3 * noise.standard_normal(w.shape))).astype(w.dtype) for name, w in weights.items()
        }
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(source / "config.json", target)


def ask(address: str, png: bytes, question: str) -> dict[str, Any]:
    """Asks the service a question about an image and returns its answer."""
    boundary = "end-to-end"
    parts = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="question"\r\n\r\n{question}\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="page.png"\r\n'
        "Content-Type: image/png\r\n\r\n"
    ).encode()
    body = parts + png + f"\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    with urllib.request.urlopen(urllib.request.Request(f"{address}/answer", body, headers), timeout=300) as reply:
        answer: dict[str, Any] = json.loads(reply.read())
    return answer


def prepare() -> Path:
    """Creates the copy of the repository, with a watched folder."""
    root = copy_of_head(Path("."), FOLDER / "repository", smallest)
    path = root / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["watch"] = {KEY: {"source": "folder", "location": str(WATCHED), "settle_seconds": 2.0}}
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    subprocess.run(
        ["git", "-c", "user.name=me", "-c", "user.email=me@localhost", "commit", "-qam", "watch"], cwd=root, check=True
    )
    (root / WATCHED).mkdir(parents=True)
    return root


def settings(root: Path, api: str, registry: str) -> dict[str, str]:
    """Returns the environment of all processes: these servers, and none of the user's settings."""
    return {
        "PREFECT_HOME": str(root.parent / "prefect"),
        "PREFECT_API_URL": f"{api}/api",
        "DO_NOT_TRACK": "1",
        "MLFLOW_TRACKING_URI": registry,
        "XDG_DATA_HOME": str(root.parent / "data"),
        "XDG_CACHE_HOME": str(root.parent / "cache"),
    }


def start_servers(stack: ExitStack, root: Path, api: str, registry: str) -> None:
    """Starts Prefect, the registry and a worker of the pool `control`, whose flow `rechase` also runs the stages."""
    port = {url: url.rpartition(":")[2] for url in (api, registry)}
    start(stack, root, "prefect", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port[api])
    start(stack, root, "registry", "sparsemm.cli", "registry", "serve", "--port", port[registry])
    wait_for("Prefect server", lambda: get(f"{api}/api/health"))
    wait_for("registry", lambda: get(f"{registry}/health"))
    subprocess.run([sys.executable, "-m", "flows.deploy"], cwd=root, check=True, stdout=subprocess.DEVNULL)
    start(stack, root, "worker", "prefect", "worker", "start", "--pool", "control", "--type", "process")


def arrive(root: Path, name: str, seed: int | None) -> None:
    """Copies a checkpoint into the watched folder and emits the event."""
    drop(root / "data" / "checkpoints" / KEY, root / WATCHED / name, seed)
    command = ["prefect", "event", "emit", "checkpoint.arrived", "--resource-id", f"checkpoint.{KEY}"]
    subprocess.run([sys.executable, "-m", *command], cwd=root, check=True, stdout=subprocess.DEVNULL)


def champion(registry: str) -> str | None:
    """Returns the champion's version, or None while there is none."""
    try:
        return resolve(CHAMPION, tracking_uri=registry).version
    except RegistryError:
        return None


def look_up(root: Path) -> dict[str, Any]:
    """Looks up the champion in another process, as any program can."""
    command = [sys.executable, "-m", "sparsemm.cli", "lookup", CHAMPION, "--json"]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    description: dict[str, Any] = json.loads(done.stdout)
    return description


def main() -> None:
    """Runs the example, and prints what happens and how long it takes."""
    example = "example: python -m examples.end_to_end"
    parser = argparse.ArgumentParser(prog="python -m examples.end_to_end", description=__doc__, epilog=example)
    parser.add_argument("--keep", action="store_true", help="leave the servers running until Ctrl-C")
    keep = parser.parse_args().keep
    with suppress(KeyboardInterrupt):
        run(keep)


def run(keep: bool) -> None:
    """Starts everything, lets two revisions arrive, and with `keep` waits for Ctrl-C at the end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the ExitStack stops all processes
    shutil.rmtree(FOLDER, ignore_errors=True)
    root = prepare()
    api, registry, service = (f"http://127.0.0.1:{free_port()}" for _ in range(3))
    os.environ |= settings(root, api, registry)
    with ExitStack() as stack:
        start_servers(stack, root, api, registry)
        print(f"flow runs: {api}/runs\nregistry: {registry}\nlogs: {FOLDER}\na re-chase takes minutes", flush=True)
        arrive(root, "first", None)
        wait_for("first revision dropped, chased, published, champion", lambda: champion(registry) == "1")
        print("looked up:", {name: look_up(root)[name] for name in ("name", "version", "digest")})
        variables = {
            "SPARSEMM_SERVICE_MODEL": KEY,
            "SPARSEMM_SERVICE_PORT": service.rpartition(":")[2],
            "SPARSEMM_SERVICE_REFRESH_SECONDS": "2",
            "SPARSEMM_SERVICE_BUDGET": "24",  # of 52 tokens
        }
        start(stack, root, "service", "examples.service.app", **variables)
        wait_for("service", lambda: get(f"{service}/health"))
        page = read_records(root / "artifacts" / "datasets" / "evaluation.parquet")[0]
        png = io.BytesIO()
        page.image.save(png, format="PNG")
        print("answer:", ask(service, png.getvalue(), "Read the page."))
        arrive(root, "second", 1)
        wait_for("second revision dropped, chased, published, champion", lambda: champion(registry) == "2")
        answer = wait_for("service follows", lambda: _with_version(service, png.getvalue(), "2"))
        print("answer:", answer)
        if keep:
            stay(root, api, registry, service)


def stay(root: Path, api: str, registry: str, service: str) -> None:
    """Prints the pages of the servers and waits for Ctrl-C."""
    name = CHAMPION.removeprefix("models:/").partition("@")[0]
    pages = {
        "Prefect, flow runs": f"{api}/runs",
        "registry, versions": f"{registry}/#/models/{name}",
        "service, its interface": service,
        "service, metrics": f"{service}/metrics",
    }
    print("\n".join(f"{page}: {address}" for page, address in pages.items()))
    print(f"checkpoints that are copied into {root / WATCHED} are chased too; Ctrl-C ends everything", flush=True)
    signal.pause()


def _with_version(service: str, png: bytes, version: str) -> dict[str, Any] | None:
    answer = ask(service, png, "Read the page.")
    return answer if answer["score_version"] == version else None


if __name__ == "__main__":
    main()
