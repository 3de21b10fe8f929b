"""Reads dvc.lock as YAML, without DVC: which stages ran for a model, and whether the files are still their outputs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from sparsemm import inputs
from sparsemm.errors import RegistryError
from sparsemm.params import Params

STAGES = ("align", "chase", "allocate", "evaluate", "profile")
OPTIONAL = ("tune",)  # they belong to the results where they ran
ALSO = ("align-also", "chase-also")
STALE = "`dvc repro` brings it up to date"


@dataclass(frozen=True)
class Stages:
    """The dvc.lock entries of one model."""

    # stage name (`chase@<key>`, ...) -> its cmd, deps, params and outs; of `OPTIONAL` stages if they ran
    entries: dict[str, dict[str, Any]]
    # entries of the `ALSO` stages (over the data sets of `robustness`) that ran; no part of the identity
    also: dict[str, dict[str, Any]]
    report: dict[str, Any] | None  # entry of the report stage, if it ran
    sha256: str  # hex digest of dvc.lock's bytes

    @property
    def hash(self) -> str:
        """Returns the hex SHA-256 of the entries' canonical JSON, the identity of what is published."""
        text = json.dumps(self.entries, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def outs(self) -> dict[str, str]:
        """Returns path -> md5 of every output of the model's stages."""
        return {out["path"]: out["md5"] for entry in self.entries.values() for out in entry["outs"]}


def read_stages(root: Path, key: str) -> Stages:
    """Reads the entries of one model from dvc.lock.

    Raises RegistryError if dvc.lock is missing or malformed, lacks a stage of the model, or a stage ran on a file that
    another stage has replaced since.
    """
    path = root / "dvc.lock"
    try:
        content = path.read_bytes()
        value = yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except OSError as error:
        raise RegistryError(f"cannot be read: {error}", where=str(path), hint="run `dvc repro` first") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RegistryError(f"not YAML: {error}", where=str(path)) from error
    if not isinstance(value, dict) or value.get("schema") != "2.0" or not isinstance(value.get("stages"), dict):
        raise RegistryError("not a dvc.lock of schema 2.0", where=str(path))
    names = [f"{stage}@{key}" for stage in STAGES]
    missing = [name for name in names if name not in value["stages"]]
    if missing:
        raise RegistryError(f"stages never ran: {', '.join(missing)}", where=str(path), hint="run `dvc repro` first")
    names += [name for stage in OPTIONAL if (name := f"{stage}@{key}") in value["stages"]]
    entries = {name: _entry(value["stages"][name], f"{path}: {name}") for name in names}
    report = value["stages"].get("report")
    of_key = tuple(f"{stage}@{key}-" for stage in ALSO)
    also = {name: _entry(raw, f"{path}: {name}") for name, raw in value["stages"].items() if name.startswith(of_key)}
    stages = Stages(entries, also, report and _entry(report, f"{path}: report"), hashlib.sha256(content).hexdigest())
    outs = stages.outs()
    for name, entry in entries.items():
        for dep in entry["deps"]:
            if outs.get(dep["path"], dep["md5"]) != dep["md5"]:
                raise RegistryError(f"{name} ran on an older {dep['path']}", where=str(path), hint=STALE)
    return stages


def _entry(value: Any, where: str) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = {
            name: value.get(name) or default for name, default in (("cmd", ""), ("deps", []), ("params", {}))
        }
        entry["outs"] = value["outs"]
        good = all(type(file[name]) is str for file in [*entry["deps"], *entry["outs"]] for name in ("path", "md5"))
        good &= all(isinstance(values, dict) for values in entry["params"].values())
    except (KeyError, TypeError, AttributeError) as error:
        raise RegistryError(f"malformed: {error!r}", where=where) from error
    if not good:
        raise RegistryError("malformed: path and md5 must be strings, params a mapping", where=where)
    return entry


def check_params(stages: Stages, params: Params, root: Path) -> None:
    """Checks that every stage ran with the current values of params.yaml, those of its model's entry included.

    Raises RegistryError if a stage ran with another value; it names the stage and the key.
    """
    for name, entry in stages.entries.items():
        changed = other_param(entry, params, root)
        if changed is not None:
            raise RegistryError(f"{name} ran with another value of {changed}", where="params.yaml", hint=STALE)


def other_param(entry: dict[str, Any], params: Params, root: Path) -> str | None:
    """Returns the first key of params.yaml whose value has changed since the stage ran, or None.

    What is of the model's entry is in a file of artifacts/inputs, whose name is returned if it is not the one that the
    stage ran with.
    """
    for dotted, ran in entry["params"].get("params.yaml", {}).items():
        value: Any = params
        try:
            for part in dotted.split("."):
                value = value[part] if isinstance(value, dict) else getattr(value, part)
            text = json.dumps(ran)
            same = (
                type(value).model_validate_json(text) == value
                if isinstance(value, BaseModel)
                else json.loads(json.dumps(value)) == ran
            )
        except (AttributeError, KeyError, TypeError, ValidationError):
            same = False
        if not same:
            return str(dotted)
    for dep in entry["deps"]:
        folder, _, name = dep["path"].partition(f"{inputs.FOLDER.as_posix()}/")
        if not folder and name and (changed := _other_setting(name, dep["md5"], params, root)):
            return changed
    return None


def _other_setting(name: str, md5: str, params: Params, root: Path) -> str | None:
    """Returns the first value of a model's entry that is not the one in its file of artifacts/inputs, or None."""
    path = inputs.FOLDER / name
    try:
        ran = json.loads((root / path).read_bytes())
        same = md5_of(root / path) == md5
        now = inputs.settings(params)[name]
        changed = [
            f"{part}.{key}"
            for part in now
            for key in {*now[part], *ran[part]}
            if now[part].get(key) != ran[part].get(key)
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return path.as_posix()
    return min(changed, default=None) if same else path.as_posix()


def md5_of(path: Path) -> str:
    """Returns DVC's md5 of a file, or of a folder (`.dir`: of the sorted JSON list of its files).

    Raises OSError if it cannot be read.
    """
    if not path.is_dir():
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "md5").hexdigest()
    files = sorted((p.relative_to(path).as_posix(), p) for p in path.rglob("*") if p.is_file())
    listed = [{"md5": md5_of(file), "relpath": name} for name, file in sorted(files)]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest() + ".dir"  # noqa: S324


def report_is_current(stages: Stages, root: Path) -> bool:
    """Tells whether artifacts/report is what the report stage wrote from the present tables."""
    if stages.report is None:
        return False
    try:
        files = [*stages.report["outs"], *stages.report["deps"]]
        return all(md5_of(root / f["path"]) == f["md5"] for f in files if f["path"].startswith("artifacts/"))
    except OSError:
        return False
