"""dvc.lock: what ran for a model, and whether the files here are still what it wrote. Read as YAML, without DVC."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from sparsemm.errors import RegistryError
from sparsemm.params import Params

STAGES = ("align", "chase", "allocate", "evaluate", "profile")
ALSO = ("align-also", "chase-also")
STALE = "`dvc repro` brings it up to date"


@dataclass(frozen=True)
class Stages:
    """The dvc.lock entries of one model.

    Attributes:
        entries: stage name (`chase@<key>`, ...) -> its cmd, deps, params and outs.
        also: the same of `ALSO`, over the data sets of `robustness`; as far as they ran, and no part of the identity.
        report: entry of the report stage, if it ran.
        sha256: of dvc.lock's bytes.
    """

    entries: dict[str, dict[str, Any]]
    also: dict[str, dict[str, Any]]
    report: dict[str, Any] | None
    sha256: str

    @property
    def hash(self) -> str:
        """Hex SHA-256 of the canonical JSON of the entries: the identity of what is published."""
        text = json.dumps(self.entries, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def outs(self) -> dict[str, str]:
        """Path -> md5 of every output of the model's stages."""
        return {out["path"]: out["md5"] for entry in self.entries.values() for out in entry["outs"]}


def read_stages(root: Path, key: str) -> Stages:
    """The entries of one model in dvc.lock.

    Raises:
        RegistryError: if dvc.lock is missing or malformed, lacks a stage of the model, or one stage ran on what
            another has since replaced.
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
        raise RegistryError(f"{', '.join(missing)} never ran", where=str(path), hint="run `dvc repro` first")
    entries = {name: _entry(value["stages"][name], f"{path}: {name}") for name in names}
    report = value["stages"].get("report")
    of_key = tuple(f"{stage}@{key}-" for stage in ALSO)
    also = {name: _entry(one, f"{path}: {name}") for name, one in value["stages"].items() if name.startswith(of_key)}
    stages = Stages(entries, also, report and _entry(report, f"{path}: report"), hashlib.sha256(content).hexdigest())
    outs = stages.outs()
    for name, entry in entries.items():
        for dep in entry["deps"]:
            if outs.get(dep["path"], dep["md5"]) != dep["md5"]:
                raise RegistryError(f"{name} ran on another {dep['path']}", where=str(path), hint=STALE)
    return stages


def _entry(value: Any, where: str) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = {
            name: value.get(name) or default for name, default in (("cmd", ""), ("deps", []), ("params", {}))
        }
        entry["outs"] = value["outs"]
        good = all(type(one[name]) is str for one in [*entry["deps"], *entry["outs"]] for name in ("path", "md5"))
        good &= all(isinstance(values, dict) for values in entry["params"].values())
    except (KeyError, TypeError, AttributeError) as error:
        raise RegistryError(f"malformed: {error!r}", where=where) from error
    if not good:
        raise RegistryError("malformed: a path or md5 that is no text, or params that are no mapping", where=where)
    return entry


def check_params(stages: Stages, params: Params) -> None:
    """Refuse results of other params than these.

    Raises:
        RegistryError: naming the stage and the key that differs.
    """
    for name, entry in stages.entries.items():
        dotted = other_param(entry, params)
        if dotted is not None:
            raise RegistryError(f"{name} ran with another {dotted}", where="params.yaml", hint=STALE)


def other_param(entry: dict[str, Any], params: Params) -> str | None:
    """The first key of params.yaml that an entry ran with another value of; None if there is none."""
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
    return None


def md5_of(path: Path) -> str:
    """DVC's md5 of a file, or of a folder (`.dir`: over the sorted JSON list of its files).

    Raises:
        OSError: if it cannot be read.
    """
    if not path.is_dir():
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "md5").hexdigest()
    files = sorted((p.relative_to(path).as_posix(), p) for p in path.rglob("*") if p.is_file())
    listed = [{"md5": md5_of(file), "relpath": name} for name, file in sorted(files)]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest() + ".dir"  # noqa: S324


def report_is_current(stages: Stages, root: Path) -> bool:
    """Whether artifacts/report is what the report stage wrote, from the tables that are here now."""
    if stages.report is None:
        return False
    try:
        outs = [one for one in [*stages.report["outs"], *stages.report["deps"]] if one["path"].startswith("artifacts/")]
        return all(md5_of(root / one["path"]) == one["md5"] for one in outs)
    except OSError:
        return False
