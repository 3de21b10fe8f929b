"""Chooses the registry's address, connects to it, and turns its errors into SparseMM's."""

from __future__ import annotations

import http.client
import ipaddress
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from sparsemm.errors import RegistryError, RegistryUnreachable
from sparsemm.params import Params

if TYPE_CHECKING:
    from mlflow import MlflowClient

STORE = Path("artifacts") / "registry"
PORT = 5000  # of `sparsemm registry serve`
SERVED = f"http://127.0.0.1:{PORT}"
INSTALL = "install the registry extra: `pip install '.[registry]'` in a clone of SparseMM"
# Defaults for the client's environment: no telemetry, no progress output, about 30 s of retries instead of 4 minutes.
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
}
MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's codes where there is no such version
PATIENCE = 5.0  # seconds that a server may take to answer the health check


def model_name(key: str) -> str:
    """Returns the name of a key's registered model: visual-heads.<key>.

    Raises RegistryError if the key is not a valid key of params.yaml.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", key):
        raise RegistryError(f"{key!r} is not a model key", hint="use letters, digits, - and _")
    return f"visual-heads.{key}"


def default_store(root: Path) -> str:
    """Returns the address of the SQLite registry under artifacts/registry, with a server or without."""
    return sqlite_uri((root / STORE / "mlflow.db").resolve())


def files_folder(store: Path) -> Path:
    """Returns the folder beside a SQLite store that holds the files of its runs."""
    return store.parent / "files"


def sqlite_uri(file: Path) -> str:
    """Returns the SQLAlchemy address of a SQLite file. A ? in the path is quoted, because options follow a ? there; the
    driver is named then, because MLflow makes a folder called "file:" for an address of this kind without it.
    """
    return f"sqlite+pysqlite:///file:{quote(str(file))}?uri=true" if "?" in str(file) else f"sqlite:///{file}"


def registry_uri(explicit: str | None, params: Params | None = None, root: Path = Path(".")) -> str:
    """Returns the registry's address: the first that is set of `explicit`, registry.tracking_uri in params.yaml and
    MLFLOW_TRACKING_URI, else SQLite under `root`.

    Raises RegistryError if it is neither http(s) nor sqlite, or holds credentials (they would end up in logs).
    """
    from_params = params.registry.tracking_uri if params is not None else None
    uri = explicit or from_params or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return default_store(root)
    try:
        parts = urlsplit(uri)
        host, secret = parts.hostname, parts.username is not None or parts.password is not None
    except ValueError as error:
        raise RegistryError("the tracking URI is not a URI") from error
    if file := sqlite_file(uri):
        return sqlite_uri(file)
    if parts.scheme not in ("http", "https") or not host:
        hint = (
            "use http(s)://host:port or sqlite:///file (sqlite+pysqlite:///file:/a%3Fb?uri=true if its path holds a ?)"
            "; for other databases start `sparsemm registry serve --store`"
        )
        raise RegistryError(f"unsupported kind of tracking URI: {parts.scheme or 'path'!r}", hint=hint)
    if secret:
        hint = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        raise RegistryError("the tracking URI holds credentials", where=host, hint=hint)
    return uri


def sqlite_file(uri: str) -> Path | None:
    """Returns the database file of an address made by `sqlite_uri`, or None for any other address."""
    if match := re.fullmatch(r"sqlite(?:\+pysqlite)?:///file:([^?]+)\?uri=true", uri):
        return Path(unquote(match[1]))
    return Path(uri.removeprefix("sqlite:///")) if re.fullmatch(r"sqlite:///(?!file:)[^:?][^?]*", uri) else None


def is_loopback(host: str) -> bool:
    """Tells whether a host name or address means this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def page(uri: str, path: str) -> str:
    """Returns the address of a page of MLflow's UI. For a SQLite file it is where `registry serve` shows it."""
    return f"{(SERVED if sqlite_file(uri) else uri).rstrip('/')}/#/{path}"


def connect(uri: str, create: bool = False) -> MlflowClient:
    """Returns a client of a registry that answers. `SETTINGS` apply where the environment sets nothing else.

    Raises RegistryUnreachable if a server does not answer within `PATIENCE` seconds, and RegistryError if mlflow is not
    installed, or the SQLite file does not exist and is not to be created.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    file = sqlite_file(uri)
    if file is None:
        _knock(uri)
    elif not create and not file.is_file():
        raise RegistryError("no registry found", where=str(file), hint="publish first, or set MLFLOW_TRACKING_URI")
    try:
        from filelock import FileLock
        from mlflow import MlflowClient
    except ImportError as error:
        raise RegistryError(f"{error}", hint=INSTALL) from error
    if file is None:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    file.parent.mkdir(parents=True, exist_ok=True)
    with answering(uri), FileLock(f"{file}.lock"):  # two processes at first use would both run the migrations
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_registered_models(max_results=1)
    return client


def _knock(uri: str) -> None:
    """Checks once that a server answers, because MLflow itself would retry a dead server for minutes."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=PATIENCE):  # noqa: S310  (http only)
            return
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (502, 503, 504):
            raise RegistryUnreachable(f"the registry does not answer: {error}", where=uri) from error
    except (OSError, http.client.HTTPException) as error:
        if not isinstance(getattr(error, "reason", error), ssl.SSLError):  # MLflow may have its own certificates
            raise RegistryUnreachable(f"the registry does not answer: {error}", where=uri) from error


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Turns the errors of MLflow and its transport into RegistryError or RegistryUnreachable."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, requests.RequestException, SQLAlchemyError) as error:
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
            chain.append(cause)
        text = " ".join(str(error).split())[:500]
        status = max((getattr(getattr(link, "response", None), "status_code", 0) for link in chain), default=0)
        broken = (requests.ConnectionError, requests.Timeout, requests.exceptions.RetryError)
        if status == 401 or "error code 401" in text:
            hint = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            raise RegistryError("the registry rejects these credentials", where=uri, hint=hint) from error
        dropped = any(isinstance(link, broken) for link in chain) or status >= 500
        if dropped or getattr(error, "error_code", None) == "TEMPORARILY_UNAVAILABLE":
            raise RegistryUnreachable(f"the registry stopped answering: {text}", where=uri) from error
        raise RegistryError(f"the registry refused the request: {text}", where=uri) from error


@contextmanager
def ignoring(*codes: str) -> Iterator[None]:
    """Ends its body at an error of MLflow with one of these codes, and lets all others pass."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in codes:
            raise
