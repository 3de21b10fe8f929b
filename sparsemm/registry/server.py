"""Become an MLflow server with safe settings."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from sparsemm.errors import RegistryError
from sparsemm.files import atomic_path
from sparsemm.registry.client import STORE, sqlite_uri

PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"
SECRET_KEY = "MLFLOW_FLASK_SERVER_SECRET_KEY"
BACKEND = "MLFLOW_BACKEND_STORE_URI"
SETTINGS = {
    # Without this any s3:// address is accepted as the source of a version, and its files can then be read.
    "MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX": r"^(runs|models|mlflow-artifacts):/",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
}


def command(
    root: Path, port: int, store: str | None, artifacts: str | None, auth: bool
) -> tuple[list[str], dict[str, str]]:
    """The server's command and environment; secrets are in the environment only, where `ps` does not show them.

    Args:
        root: folder that holds artifacts/; by default everything is in artifacts/registry/server.
        port: of 127.0.0.1.
        store: SQLAlchemy URI; by default MLFLOW_BACKEND_STORE_URI, else SQLite. With a password only by environment.
        artifacts: folder or s3:// address of the files.
        auth: ask for a name and a password. The first start makes the user `admin` with the password of
            MLFLOW_AUTH_ADMIN_PASSWORD; users are kept in auth.db.

    Raises:
        RegistryError: if the password is missing, or one was given on the command line.
    """
    # Not the database that is used without a server: its experiments name local folders, which other hosts lack.
    folder = (root / STORE / "server").resolve()
    environment = {**os.environ, **SETTINGS}
    if store is not None and "@" in store.partition("://")[2]:
        raise RegistryError("--store holds credentials", hint=f"give it in {BACKEND}; other users can see arguments")
    environment[BACKEND] = store or os.environ.get(BACKEND) or sqlite_uri(folder / "mlflow.db")
    files = artifacts or (folder / "files").as_uri()
    words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--artifacts-destination", files]
    folder.mkdir(parents=True, exist_ok=True)
    environment.pop("MLFLOW_TRACKING_URI", None)  # a server is nobody's client
    if not auth:
        environment.pop(PASSWORD, None)
        return words, environment
    if not environment.get(PASSWORD):
        raise RegistryError(f"--auth wants {PASSWORD} in the environment")
    # No password in this file: MLflow reads it from the environment.
    config = folder / "auth.ini"
    users = sqlite_uri(folder / "auth.db").replace("%", "%%")  # in such a file % begins an interpolation
    with atomic_path(config) as temporary:
        temporary.write_text(
            "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
            f"database_uri = {users}\n"
            # A password is hashed at most once a minute: at every request it costs more than the request.
            "auth_cache_ttl_seconds = 60\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
            encoding="utf-8",
        )
    environment["MLFLOW_AUTH_CONFIG_PATH"] = str(config)
    environment.setdefault(SECRET_KEY, secrets.token_hex(32))
    return [*words, "--app-name", "basic-auth"], environment


def serve(root: Path, port: int, store: str | None = None, artifacts: str | None = None, auth: bool = False) -> None:
    """Replace this process by the server; see `command`.

    Raises:
        RegistryError: as `command`, or if mlflow is not installed.
    """
    from importlib.util import find_spec

    if find_spec("mlflow") is None:
        raise RegistryError("mlflow is not installed", hint="pip install 'sparsemm[registry]'")
    words, environment = command(root, port, store, artifacts, auth)
    sys.stdout.flush()
    os.execve(words[0], words, environment)
