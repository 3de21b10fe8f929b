"""A PostgreSQL cluster from Debian's packages, for as long as tests need it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.servers import free_port

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def _owner() -> pwd.struct_passwd | None:
    """Whom the cluster belongs to: PostgreSQL does not run for root."""
    try:
        return pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    except KeyError:
        return None


def _as_owner(*command: str) -> list[str]:
    return ["runuser", "-u", "postgres", "--", *command] if os.geteuid() == 0 else list(command)


def installed() -> bool:
    """Whether a cluster can be made here."""
    return bool(PROGRAMS) and _owner() is not None


@contextmanager
def cluster(*databases: str) -> Iterator[str]:
    """`host:port` of a cluster with these databases of the user "me"; whoever connects is trusted."""
    owner, programs, port = _owner(), PROGRAMS[-1], free_port()
    assert owner is not None
    folder = Path(tempfile.mkdtemp(prefix="sparsemm-postgres-"))
    os.chown(folder, owner.pw_uid, owner.pw_gid)
    data = folder / "data"
    quiet: dict[str, Any] = {"check": True, "capture_output": True, "cwd": folder}
    subprocess.run(_as_owner(str(programs / "initdb"), "-D", str(data), "-U", "me", "--auth=trust"), **quiet)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
    control = _as_owner(str(programs / "pg_ctl"), "-D", str(data), "-w")
    subprocess.run([*control, "-o", options, "-l", str(folder / "log"), "start"], **quiet)
    try:
        for name in databases:
            words = ["-h", "127.0.0.1", "-p", str(port), "-U", "me", name]
            subprocess.run(_as_owner(str(programs / "createdb"), *words), **quiet)
        yield f"127.0.0.1:{port}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
        shutil.rmtree(folder)
