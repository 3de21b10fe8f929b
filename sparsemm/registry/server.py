"""Starts an MLflow server with safe settings."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsemm.errors import RegistryError
from sparsemm.files import atomic_path
from sparsemm.registry.client import INSTALL, STORE, default_store, files_folder, is_loopback, sqlite_file, sqlite_uri

PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"
SECRET_KEY = "MLFLOW_FLASK_SERVER_SECRET_KEY"
BACKEND = "MLFLOW_BACKEND_STORE_URI"
HOSTS, ORIGINS = "MLFLOW_SERVER_ALLOWED_HOSTS", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"
LOOPBACK_NAMES = ("localhost", "127.0.0.1")
SETTINGS = {
    # Without this pattern any s3:// address is accepted as the source of a version, and its files can be read.
    "MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX": r"^(runs|models|mlflow-artifacts):/",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
}


def command(
    root: Path,
    port: int,
    store: str | None = None,
    artifacts: str | None = None,
    auth: bool = False,
    host: str = "127.0.0.1",
    names: Sequence[str] = (),
) -> tuple[list[str], dict[str, str]]:
    """Returns the server's command and environment. Secrets are in the environment only, where `ps` does not show them.

    Args:
        root: folder that holds artifacts/. By default the server uses the store there, which `publish` also uses when
            it knows of no server.
        port: port to listen on.
        store: SQLAlchemy URI; by default MLFLOW_BACKEND_STORE_URI, else SQLite. A URI with a password is accepted
            from the environment only.
        artifacts: folder or s3:// address of the files.
        auth: whether clients need a user name and a password. The first start creates the user `admin` with the
            password of MLFLOW_AUTH_ADMIN_PASSWORD; users are kept in auth.db.
        host: address to listen on. Any other than loopback needs `auth`.
        names: names or addresses by which other hosts reach the server and its pages, such as registry.example.org.
            Without any, clients may use private addresses, but the pages work on this machine only.

    Raises:
        RegistryError: if the password is missing, the command line holds one, or other hosts could use the server
            without one.
    """
    environment = {**os.environ, **SETTINGS}
    if not auth and not is_loopback(host):
        hint = f"add --auth and set {PASSWORD}, or listen on 127.0.0.1 behind a proxy"
        what = "other hosts could change the registry without a password"
        raise RegistryError(what, where=f"--host {host}", hint=hint)
    if store is not None and "@" in store.partition("://")[2]:
        raise RegistryError("--store holds credentials", hint=f"set {BACKEND} instead; other users can see arguments")
    environment[BACKEND] = store or os.environ.get(BACKEND) or default_store(root)
    file = sqlite_file(environment[BACKEND])
    folder = (root / STORE).resolve() if file is None else file.resolve().parent
    arguments = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    arguments += ["--artifacts-destination", artifacts or files_folder(folder / "mlflow.db").as_uri()]
    if names:
        environment[HOSTS] = ",".join(f"{name}{end}" for name in (*LOOPBACK_NAMES, *names) for end in ("", ":*"))
        # The pages of the UI come from these addresses and send requests that change things.
        addresses = [
            f"{scheme}://{name}{end}" for name in names for scheme in ("http", "https") for end in ("", f":{port}")
        ]
        environment[ORIGINS] = ",".join(addresses)
    folder.mkdir(parents=True, exist_ok=True)
    environment.pop("MLFLOW_TRACKING_URI", None)  # the server must not become a client of another one
    if not auth:
        environment.pop(PASSWORD, None)
        return arguments, environment
    if not environment.get(PASSWORD):
        raise RegistryError(f"--auth needs {PASSWORD} in the environment", hint=f"export {PASSWORD}=...")
    # MLflow reads the password from the environment, so it is not written to this file.
    config = folder / "auth.ini"
    users = sqlite_uri(folder / "auth.db").replace("%", "%%")  # % begins an interpolation in an INI file
    with atomic_path(config) as temporary:
        temporary.write_text(
            "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
            f"database_uri = {users}\n"
            # Checking a password costs more than a request, so its result is cached for a minute.
            "auth_cache_ttl_seconds = 60\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
            encoding="utf-8",
        )
    environment["MLFLOW_AUTH_CONFIG_PATH"] = str(config)
    environment.setdefault(SECRET_KEY, secrets.token_hex(32))
    return [*arguments, "--app-name", "basic-auth"], environment


def serve(root: Path, port: int, **options: Any) -> None:
    """Replaces this process by the server; see `command` for the arguments.

    Raises RegistryError as `command`, or if mlflow is not installed.
    """
    from importlib.util import find_spec

    if find_spec("mlflow") is None:
        raise RegistryError("mlflow is not installed", hint=INSTALL)
    arguments, environment = command(root, port, **options)
    sys.stdout.flush()
    os.execve(arguments[0], arguments, environment)
