"""Real servers on free loopback ports, ended with everything they started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """A loopback port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], object], what: str | Callable[[], str], seconds: float = 900.0) -> None:
    """Poll until the condition holds; patient, because a machine may be busy with other tests.

    `what` is what was awaited; a function is called when it did not come, so that it tells the last state.

    Raises:
        AssertionError: if it does not in time.
    """
    begun = time.monotonic()
    while not condition():
        waited = time.monotonic() - begun
        if waited >= seconds:
            raise AssertionError(f"{what if isinstance(what, str) else what()}: not within {seconds} s")
        time.sleep(min(0.02 + waited / 10, 1.0))  # asking costs time of what is waited for


def answers(url: str) -> bool:
    """Whether a GET of the address succeeds."""
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


class Process:
    """A program in a session of its own, its output in a file.

    Args:
        command: program and arguments.
        log: file its output is appended to.
        environment: variables added to this process's own.
        cwd: folder it runs in.
    """

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str], cwd: Path) -> None:
        self.command, self.log, self.environment, self.cwd = command, log, dict(environment), cwd
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> Process:
        """Start it, or start it again."""
        with open(self.log, "ab") as log:
            variables = {**os.environ, **self.environment}
            self.child = subprocess.Popen(
                self.command, cwd=self.cwd, env=variables, stdout=log, stderr=log, start_new_session=True
            )
        return self

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 20.0) -> None:
        """Signal its group; SIGKILL if it is still there after `seconds`."""
        if self.child is None:
            return
        for signal_number, patience in ((number, seconds), (signal.SIGKILL, 10.0)):
            try:
                os.killpg(self.child.pid, signal_number)
            except ProcessLookupError:
                break
            try:
                self.child.wait(patience)
                break
            except subprocess.TimeoutExpired:
                continue
        self.child.wait()

    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


SERVER: list[Process] = []  # the session's Prefect server, for tests that restart it


def prefect_server(folder: Path, environment: Mapping[str, str] | None = None) -> tuple[Process, str]:
    """A Prefect server with its database in `folder`, started; and the address of its API."""
    port = free_port()
    variables = {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # What no test asks for writes to its SQLite file every few seconds, and SQLite has one writer at a time.
        **{f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in ("FOREMAN", "LATE_RUNS")},
        **(environment or {}),
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = Process(command, folder / "server.log", variables, folder).start()
    wait_for(lambda: answers(f"http://127.0.0.1:{port}/api/health"), f"Prefect server ({server.log})")
    return server, f"http://127.0.0.1:{port}/api"


@contextmanager
def registry_server(folder: Path, *arguments: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`sparsemm registry serve` of a folder, its log in `folder`/log: its address and process; killed at the end."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "sparsemm.cli", "--root", str(folder), "registry", "serve", "--port", str(port)]
    server = Process([*command, *arguments], folder / "log", environment, ROOT).start()
    assert server.child is not None

    def ready() -> bool:
        assert server.child is not None and server.child.poll() is None, server.text()
        return answers(f"{address}/health")

    try:
        wait_for(ready, f"registry ({server.log})", 180.0)
        yield address, server.child
    finally:
        server.stop(signal.SIGKILL)
