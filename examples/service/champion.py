"""Holds the score table in use, and checks for a newer one in a thread."""

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
    """Identifies a table: registered name or file name, version (None for a file), hex SHA-256 of its file."""

    name: str
    version: str | None
    digest: str


@dataclass(frozen=True, eq=False)
class Champion:
    """A score table that fits the model; `offline` if it came from the cache because the registry did not answer."""

    table: ScoreTable
    identity: Identity
    offline: bool


def identify(source: str) -> Identity:
    """Identifies the table that a path or a registry address names now. It downloads nothing.

    Raises:
        SparseMMError: if the registry is down or has no such version.
        OSError: if the file cannot be read.
    """
    if not source.startswith("models:"):
        return Identity(Path(source).name, None, sha256_file(source))
    from sparsemm.registry.lookup import resolve  # imported only if a registry is used

    version = resolve(source)
    return Identity(version.name, version.version, version.digest)


def load(source: str, config: Any, offline: bool = False) -> Champion:
    """Loads the table that a path or a registry address names.

    Raises:
        SparseMMError: if there is none, it is damaged, or it belongs to another model.
    """
    if source.startswith("models:"):
        from sparsemm.registry.lookup import look_up

        entry = look_up(source, offline=offline)
        version = entry.resolved
        assert version is not None  # only a path has none
        champion = Champion(entry.table, Identity(version.name, version.version, version.digest), offline)
    else:
        champion = Champion(ScoreTable.load(source), identify(source), offline)
    champion.table.check_model(config)
    return champion


class Follower:
    """Follows the champion: `current` is replaced as a whole, and a request keeps the one that it started with."""

    def __init__(self, source: str, config: Any, refresh_seconds: float) -> None:
        """Loads the champion, from the offline cache if the registry is down.

        Raises:
            SparseMMError: if there is no table at all, or it belongs to another model.
        """
        self.source, self.config, self.refresh_seconds = source, config, refresh_seconds
        self.checked: float | None = None  # time.monotonic() of the last answer of the registry
        self.error: str | None = None  # type of the last failure; None after a check that succeeded
        self._stop = threading.Event()
        refusal: SparseMMError | None = None  # where nothing is stored here, it says what is wrong
        try:
            identify(source)
            self.checked = time.monotonic()
        except Exception as error:
            self._failed(error)
            refusal = error if isinstance(error, SparseMMError) else None
        try:
            self.current = load(source, config, offline=self.checked is None)
        except SparseMMError as error:
            raise (error if refusal is None or type(refusal) is type(error) else refusal) from None
        # A daemon thread, so that a registry that does not answer cannot delay the end of the service.
        threading.Thread(target=self._follow, name="champion", daemon=True).start()

    def close(self) -> None:
        """Stops checking."""
        self._stop.set()

    def _follow(self) -> None:
        while not self._stop.wait(self.refresh_seconds):
            self.look()

    def look(self) -> None:
        """Checks once, and replaces the table if another one is champion. On any failure the old one stays in use."""
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
        log.warning("cannot check %s: %s", self.source, error if isinstance(error, SparseMMError) else self.error)
