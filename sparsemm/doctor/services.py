"""Checks whether each service answers and accepts the configured credentials."""

from __future__ import annotations

import configparser
import http.client
import os
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from sparsemm.doctor.finding import Finding
from sparsemm.errors import FetchError, RegistryError
from sparsemm.fetch.s3_files import check_store
from sparsemm.params import Params
from sparsemm.params.models import without_folder
from sparsemm.registry.client import registry_uri, sqlite_file

PATIENCE = 5.0  # seconds that a service may take to answer


def public(address: str) -> str:
    """Returns an address without its user name, password and query."""
    scheme, slashes, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}" if slashes else address


def knock(name: str, address: str, path: str, hint: str) -> Finding:
    """Requests one page of an HTTP server; any answer but 5xx shows that it is up."""
    shown = public(address)
    try:
        if urlsplit(address).scheme not in ("http", "https"):
            return Finding(name, "broken", f"{shown} is not http(s)", hint)
        with urllib.request.urlopen(address.rstrip("/") + path, timeout=PATIENCE):  # noqa: S310  (http only)
            return Finding(name, "ok", f"{shown} answers")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code < 500:
            return Finding(name, "ok", f"{shown} answers ({error.code})")
        return Finding(name, "broken", f"{shown} answers {error.code}", hint)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Finding(name, "broken", f"{shown} does not answer: {getattr(error, 'reason', error)}", hint)


def hub(params: Params | None) -> Finding:
    """Checks the Hugging Face hub. It is only needed if a model or data set comes from there."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Finding("hub", "absent", "HF_HUB_OFFLINE is set", "unset it to download")
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    finding = knock("hub", address, "/api/models?limit=1", "check the network, HF_ENDPOINT and proxies")
    if finding.status == "broken" and (params is None or not _from_hub(params)):
        hint = "nothing in params.yaml needs it" if params else "only checkpoints and data sets of the hub need it"
        return Finding("hub", "absent", finding.detail, hint)
    return finding


def _from_hub(params: Params) -> bool:
    """Tells whether a data set or a model comes from the hub."""
    names = [model.checkpoint for model in params.models.values()]
    models = any(not Path(name).exists() and not without_folder(name) for name in names)
    return models or any(dataset.source == "hub" for dataset in params.datasets.values())


def stores(params: Params | None) -> list[Finding]:
    """Checks every S3 address in params.yaml."""
    if params is None:
        return []
    locations = [dataset.location for dataset in params.datasets.values() if dataset.source == "s3"]
    locations += [watched.location for watched in params.watch.values() if watched.source == "s3"]
    if not locations:
        return [Finding("s3", "absent", "nothing in params.yaml is on S3", "nothing to do")]
    return [_store("s3", location) for location in sorted(set(locations))]


def _store(name: str, location: str, endpoint: str | None = None) -> Finding:
    try:
        check_store(location, PATIENCE, endpoint)
    except FetchError as error:
        return Finding(name, "broken", f"{location}: {error.what}", error.hint or "check the address")
    return Finding(name, "ok", f"{location} answers")


def dvc_remotes(root: Path) -> list[Finding]:
    """Checks the remotes of .dvc/config and .dvc/config.local. Kinds other than folders and S3 are only listed."""
    config = configparser.ConfigParser(interpolation=None)
    files = [root / ".dvc" / name for name in ("config", "config.local")]
    try:
        config.read(files, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
        return [Finding("dvc remote", "broken", f"{files[0].parent}: {error}", "correct the file")]
    if not files[0].is_file():
        return [Finding("dvc remote", "absent", f"no DVC repository in {root}", "run from the repository root")]
    findings = []
    for section in config.sections():
        if section.strip("'").startswith("remote "):
            label = section.strip("'").removeprefix("remote ").strip('"')
            findings.append(_remote(f"dvc remote {label}", config[section], files[0].parent))
    hint = "`dvc remote add -d storage s3://bucket/prefix` shares results between machines (docs/storage.md)"
    return findings or [Finding("dvc remote", "absent", "none", hint)]


def _remote(name: str, values: configparser.SectionProxy, folder: Path) -> Finding:
    url = values.get("url", "")
    if url.startswith("s3://"):
        return _store(name, url, values.get("endpointurl"))
    if "://" in url:
        return Finding(name, "ok", f"{public(url)}, not checked", "`dvc push` shows whether it works")
    if (folder / url).is_dir():
        return Finding(name, "ok", url)
    hint = f"create it, or correct it with `{name.replace('remote', 'remote modify', 1)} url ADDRESS`"
    return Finding(name, "broken", f"{url or 'no url'}: no such folder", hint)


def registry(params: Params | None, root: Path) -> Finding:
    """Checks the MLflow registry."""
    try:
        address = registry_uri(None, params, root)
    except RegistryError as error:
        return Finding("registry", "broken", str(error), error.hint or "")
    file = sqlite_file(address)
    if file is None:
        hint = "start it (`sparsemm registry serve`), or correct registry.tracking_uri or MLFLOW_TRACKING_URI"
        return knock("registry", address, "/health", hint)
    if file.is_file():
        return Finding("registry", "ok", f"SQLite in {file}")
    return Finding("registry", "absent", f"nothing published yet to {file}", "`sparsemm publish <model>` creates it")


def prefect() -> Finding:
    """Checks the Prefect server named by PREFECT_API_URL or by the active profile."""
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")
    address = os.environ.get("PREFECT_API_URL", "")
    if not address:
        try:
            profiles = tomllib.loads((home / "profiles.toml").read_text(encoding="utf-8"))
            active = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
            address = str(profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL", ""))
        except (OSError, ValueError, AttributeError):
            address = ""
    if not address:
        hint = "run `prefect server start` and set PREFECT_API_URL; without it flows use a temporary server"
        return Finding("prefect", "absent", "no address", hint)
    return knock("prefect", address, "/health", "start it (`prefect server start`), or correct PREFECT_API_URL")
