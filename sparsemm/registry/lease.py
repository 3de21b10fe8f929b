"""A lock of the registry, held by one process of all hosts at a time and released when its holder dies."""

from __future__ import annotations

import hashlib
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sparsemm.errors import RegistryError
from sparsemm.files import atomic_path
from sparsemm.registry.client import ignoring, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

SECONDS = 120.0  # a holder on another host that has been silent for this long counts as dead
EVERY = 0.5  # seconds between two attempts


def cache_home() -> Path:
    """Returns $XDG_CACHE_HOME/sparsemm, by default ~/.cache/sparsemm."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsemm"


class Lease:
    """A lock that is held. Call `check` before every step that cannot be undone."""

    def __init__(self, client: MlflowClient, name: str, owner: str) -> None:
        self.client, self.name, self.owner, self.token = client, name, owner, uuid.uuid4().hex

    def tags(self) -> dict[str, str]:
        """Returns the tags of a lock that is held from now on."""
        return {"owner": self.owner, "token": self.token, "expires": repr(time.time() + SECONDS)}

    def check(self) -> None:
        """Checks that the lock is still held, and holds it for another `SECONDS`.

        Raises RegistryError if another process has taken it over.
        """
        if _held(self.client, self.name).get("token") != self.token:
            raise RegistryError("the lock was lost to another process", where=self.name, hint="run it again")
        self.client.set_registered_model_tag(self.name, "expires", self.tags()["expires"])


def _held(client: MlflowClient, name: str) -> dict[str, str]:
    """Returns the tags of the lock; they are empty if nobody holds it."""
    with ignoring("RESOURCE_DOES_NOT_EXIST"):
        return dict(client.get_registered_model(name).tags)
    return {}


def _remove(client: MlflowClient, name: str) -> None:
    with ignoring("RESOURCE_DOES_NOT_EXIST"):
        client.delete_registered_model(name)


@contextmanager
def lease(client: MlflowClient, uri: str, model: str, patience: float = 600.0) -> Iterator[Lease]:
    """Holds the lock of a registered model, so that publishers and promoters of all hosts take turns.

    There are two locks. The first is a lock file (beside a SQLite store, else in the cache folder), which the kernel
    releases when a process dies, so it is exact on one host. The second is a registered model `<model>.lock`: names
    are a primary key of the registry's database, so only one host succeeds in creating it. Its tags name its owner and
    when it expires. If its holder has died, the next process of the same host takes it over at once, and other hosts
    after `SECONDS`, for which their clocks must agree to within seconds.

    One case is not covered: a holder that sleeps for longer than `SECONDS` between `check` and its next write may write
    while another host holds the lock. MLflow has no conditional write that could prevent this. `publish` therefore
    looks for duplicates after the fact, and `promote` reads the alias again. Raises RegistryError if another process
    holds it for longer than `patience` seconds.
    """
    from filelock import FileLock, Timeout
    from mlflow.exceptions import MlflowException

    store = sqlite_file(uri)
    folder = store.parent if store is not None else cache_home() / "locks"
    stem = hashlib.sha256(f"{uri if store is None else ''} {model}".encode()).hexdigest()[:16]
    until = time.monotonic() + patience
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{stem}.lock")
        lock.acquire(timeout=patience)
    except Timeout as error:
        what = "another process of this host publishes or promotes"
        raise RegistryError(what, where=model, hint="try again later") from error
    except OSError as error:
        raise RegistryError(f"no lock file: {error}", where=str(folder), hint="set XDG_CACHE_HOME") from error
    try:
        held = Lease(client, f"{model}.lock", _owner(folder / f"{stem}.owner"))
        _take(held, until)
        try:
            yield held
        finally:
            with suppress(MlflowException):  # a registry that is down now: the lock expires
                if _held(client, held.name).get("token") == held.token:
                    _remove(client, held.name)
    finally:
        lock.release()


def _take(held: Lease, until: float) -> None:
    """Creates the registered model that is the lock. It waits for a live holder, and removes the lock of a dead one."""
    while True:
        with ignoring("RESOURCE_ALREADY_EXISTS"):
            held.client.create_registered_model(held.name, tags=held.tags())
            return
        tags = _held(held.client, held.name)
        if tags.get("token") == held.token:
            return  # our own request, which the transport sent twice
        if tags.get("owner") == held.owner or _expired(tags):
            _remove(held.client, held.name)
        elif tags and time.monotonic() > until:
            raise RegistryError(f"held by {tags.get('owner')}", where=held.name, hint="try again later")
        elif tags:
            time.sleep(EVERY)


def _expired(tags: dict[str, str]) -> bool:
    try:
        return float(tags["expires"]) < time.time()
    except (KeyError, ValueError):
        return False  # not a lock of ours


def _owner(path: Path) -> str:
    """Returns the name of those who share this lock file: host and an id beside the file, as hosts may share a name."""
    if not path.is_file():
        with atomic_path(path) as temporary:
            temporary.write_text(uuid.uuid4().hex, encoding="utf-8")
    return f"{socket.gethostname()}/{path.read_text(encoding='utf-8')}"
