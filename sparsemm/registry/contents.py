"""Collects the files of a version: those that a model's stages wrote, each checked against dvc.lock."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sparsemm.errors import RegistryError, SparseMMError
from sparsemm.params import Params
from sparsemm.registry.lockfile import ALSO, STALE, Stages, md5_of, other_param, report_is_current
from sparsemm.scores import ScoreTable

FILES = (
    "scores/{key}.safetensors",
    "scores/{key}.json",
    "scores/{key}.csv",
    "scores/{key}.covariates.csv",
    "budgets/{key}.json",
    "evaluate/{key}.json",
    "evaluate/{key}.csv",
    "profile/{key}.json",
    "profile/{key}.csv",
    "align/{key}.json",
)
RECIPE = ("recipes/{key}.json", "recipes/{key}.csv")  # files of the tune stage, if it ran
FURTHER = (  # files for each data set of `robustness`
    "scores/also/{key}/{dataset}.safetensors",
    "scores/also/{key}/{dataset}.json",
    "scores/also/{key}/{dataset}.csv",
    "scores/also/{key}/{dataset}.covariates.csv",
    "align/also/{key}/{dataset}.json",
)


def table_name(key: str) -> str:
    """Returns the path of the score table inside a version."""
    return FILES[0].format(key=key)


def recipe_name(key: str) -> str:
    """Returns the path of the recipe inside a version that has one."""
    return RECIPE[0].format(key=key)


def gather(stages: Stages, params: Params, key: str, root: Path, folder: Path) -> ScoreTable:
    """Copies the files of a version to `folder`, checks each against dvc.lock, and returns the copied score table.

    The recipe, score tables over further data sets and the report are included if they belong to these results. A
    version is complete without them. Raises RegistryError if a file of the model's stages is missing, or differs from
    what its stage wrote; or if the recipe was found with other scores.
    """
    for name in (*FILES, *(RECIPE if f"tune@{key}" in stages.entries else ())):
        _copy(root, name.format(key=key), folder, stages.outs())
    for dataset in params.robustness:
        if (outs := _further(stages, params, key, dataset, root)) is None:
            continue
        names = [name.format(key=key, dataset=dataset) for name in FURTHER]
        if all(_is(root / "artifacts" / name, outs.get(f"artifacts/{name}")) for name in names):
            for name in names:
                _copy(root, name, folder, outs)
    if report_is_current(stages, root):
        (folder / "report").mkdir(parents=True)
        shutil.copyfile(root / "artifacts" / "report" / "index.html", folder / "report" / "index.html")
    table = ScoreTable.load(folder / table_name(key))
    if not (recipe := folder / recipe_name(key)).is_file():
        return table
    try:
        return table.with_recipe(recipe)
    except SparseMMError as error:
        raise RegistryError(str(error), where=f"artifacts/{recipe_name(key)}", hint=STALE) from error


def _copy(root: Path, name: str, folder: Path, outs: dict[str, str]) -> None:
    path, copied = f"artifacts/{name}", folder / name
    copied.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(root / path, copied)
    except OSError as error:
        hint = "`dvc repro` makes it; `dvc checkout` restores it where this clone has made it before"
        raise RegistryError(f"cannot be read: {error}", where=path, hint=hint) from error
    if not _is(copied, outs.get(path)):
        raise RegistryError("differs from what the stage wrote", where=path, hint="run `dvc repro` or `dvc checkout`")


def _is(path: Path, md5: str | None) -> bool:
    try:
        return md5_of(path) == md5
    except OSError:
        return False


def _further(stages: Stages, params: Params, key: str, dataset: str, root: Path) -> dict[str, str] | None:
    """Returns path -> md5 of what the stages over another data set wrote, or None if one is missing or out of date."""
    entries = [stages.also.get(f"{stage}@{key}-{dataset}") for stage in ALSO]
    ran: list[dict[str, Any]] = [entry for entry in entries if entry is not None]
    if len(ran) < len(ALSO) or any(other_param(entry, params, root) for entry in ran):
        return None
    outs = {out["path"]: out["md5"] for entry in ran for out in entry["outs"]}
    deps: dict[str, str] = {}
    for dep in [dep for entry in ran for dep in entry["deps"]]:
        if dep["path"].startswith("artifacts/"):
            if (outs.get(dep["path"]) or deps.setdefault(dep["path"], dep["md5"])) != dep["md5"]:
                return None
    return outs
