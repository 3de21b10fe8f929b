"""The score table in use, and a thread that looks for a newer one."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsemm.errors import SparseMMError
from sparsemm.files import sha256_file
from sparsemm.scores import ScoreTable

log = logging.getLogger("sparsemm.service")


@dataclass(frozen=True)
class Identity:
    """Which table: registered name or file name, version (None for a file), hex SHA-256 of its file."""

    name: str
    version: str | None
    digest: str


@dataclass(frozen=True, eq=False)
class Champion:
    """A score table that fits the model; `offline` if the registry could not be asked which one is current."""

    table: ScoreTable
    identity: Identity
    offline: bool


def identify(source: str) -> Identity:
    """What a path or a registry address names now; downloads nothing.

    Raises:
        SparseMMError: if the registry is down or has no such version.
        OSError: if the file cannot be read.
    """
    if not source.startswith("models:"):
        return Identity(Path(source).name, None, sha256_file(source))
    from sparsemm.registry.lookup import resolve  # a file needs nothing of the registry

    found = resolve(source)
    return Identity(found.name, found.version, found.digest)


def load(source: str, config: Any, offline: bool = False) -> Champion:
    """The table that a path or a registry address names.

    Raises:
        SparseMMError: if there is none, it is damaged, or it belongs to another model.
    """
    if source.startswith("models:"):
        from sparsemm.registry.lookup import look_up

        found = look_up(source, offline=offline)
        named = found.resolved
        assert named is not None  # it is for a path only
        champion = Champion(found.table, Identity(named.name, named.version, named.digest), offline)
    else:
        champion = Champion(ScoreTable.load(source), identify(source), offline)
    champion.table.check_model(config)
    return champion


class Follower:
    """`current` is always one whole champion; a request that took it keeps it."""

    def __init__(self, source: str, config: Any, refresh_seconds: float) -> None:
        """Load the champion; from the offline cache if the registry is down.

        Raises:
            SparseMMError: if there is no table at all, or it belongs to another model.
        """
        self.source, self.config, self.refresh_seconds = source, config, refresh_seconds
        self.checked: float | None = None  # time.monotonic() of the last answer of the registry
        self.error: str | None = None  # kind of the last failure, None once a look succeeds
        self._stop = threading.Event()
        try:
            identify(source)
            self.checked = time.monotonic()
        except Exception as error:
            self._failed(error)
        self.current = load(source, config, offline=self.checked is None)
        # A daemon: a registry that does not answer must not hold up the end of the service.
        threading.Thread(target=self._follow, name="champion", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._stop.set()

    def _follow(self) -> None:
        while not self._stop.wait(self.refresh_seconds):
            self.look()

    def look(self) -> None:
        """Ask once; swap the table if another one is champion. On any failure the old one stays in use."""
        try:
            identity = identify(self.source)
            if self.current.offline or identity != self.current.identity:
                self.current = load(self.source, self.config)
                log.info("score table %s version %s", self.current.identity.name, self.current.identity.version)
            self.checked, self.error = time.monotonic(), None
        except Exception as error:  # this thread must live on
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self.error = type(error).__name__
        log.warning("no look at %s: %s", self.source, error if isinstance(error, SparseMMError) else self.error)
