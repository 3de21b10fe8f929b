"""Writes what each stage of dvc.yaml depends on besides data and params, as files that DVC compares.

DVC sees that a folder or a key of params.yaml has changed. A stage depends on less than that: on the files that it
imports, comments apart; on which checkpoint its model is; and on those values of the model's entry that override params
of this stage. A file of artifacts/inputs holds exactly these, so that an edit of anything else re-runs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsemm.dependencies import digests
from sparsemm.files import write_json
from sparsemm.params import Params
from sparsemm.params.models import OVERRIDDEN, ModelParams

FOLDER = Path("artifacts") / "inputs"
Names = tuple[str, ...]
OF_THE_REPOSITORY: dict[str, Names] = {  # stage: the modules that its command runs
    "download": ("sparsemm.datasets.download",),
    "assemble": ("sparsemm.assemble.stage",),
    "profile-shape": ("sparsemm.profiling.stage",),
    "report": ("sparsemm.report.stage",),
}
ALLOCATE = ("allocate.mode", "allocate.rho", "allocate.window")
PICKS = ("evaluate.pooling_kernel", "evaluate.seed")
ANSWERS = ("chase.prompt", "evaluate.batch_size", "evaluate.bootstrap", "evaluate.max_new_tokens", *PICKS)
# Stage: its modules, and those of its params in dvc.yaml that a model's entry may override. A data set cannot be.
OF_A_MODEL: dict[str, tuple[Names, Names]] = {
    "align": (("sparsemm.align.stage",), ("chase",)),
    "chase": (("sparsemm.chase.stage", "sparsemm.chase.workers"), ("chase",)),
    "allocate": (("sparsemm.allocate",), ("allocate",)),
    "evaluate": (("sparsemm.evaluate.stage",), ("chase.prompt", "evaluate")),
    "profile": (("sparsemm.profiling.stage",), ("allocate", *PICKS, "profile")),
    "tune": (("sparsemm.tune.stage",), ("tune", *ALLOCATE, *ANSWERS)),
    "explore": (("sparsemm.explorer.stage",), ("chase.max_new_tokens", "chase.prompt", "evaluate.methods", *PICKS)),
}
STUDY, ASKS = "sparsemm.studies.common.stage", "sparsemm.studies.common.experiment"
# Stage: the same for each study of its group, whose file and entry in params.yaml are added.
OF_A_STUDY: dict[str, tuple[str, Names, Names]] = {
    "study": ("measured", (STUDY, ASKS), (*ALLOCATE, *ANSWERS, "chase.max_new_tokens")),
    "study-compared": ("compared", (STUDY, ASKS), (*ALLOCATE, *ANSWERS)),
    "study-derived": ("derived", (STUDY,), ("evaluate.bootstrap", "evaluate.seed", "profile.budget")),
}
WITHOUT_MODEL = ("allocate", "study-derived")  # they read what other stages wrote


def contents(params: Params) -> dict[str, dict[str, Any]]:
    """Returns what the files hold, by their names in artifacts/inputs: `code` and, of a model's stages, `settings`.

    `code` has the digest of every file that the stage imports.
    """
    files = {f"{stage}.json": {"code": digests(*modules)} for stage, modules in OF_THE_REPOSITORY.items()}
    code = {folder: digests(*modules) for _, folder, modules, _ in _of_models(params)}
    return files | {name: {"code": code[name.rpartition("/")[0]]} | own for name, own in settings(params).items()}


def settings(params: Params) -> dict[str, dict[str, Any]]:
    """Returns what the files hold besides code: `model` and `overrides`.

    `model` is the checkpoint and how it is loaded; `overrides` are the values of the model's entry that replace params
    of the stage, by their keys in params.yaml.
    """
    result = {}
    for stage, folder, _, keys in _of_models(params):
        for key, entry in params.models.items():
            model = {} if stage in WITHOUT_MODEL else {"model": entry.identity()}
            result[f"{folder}/{key}.json"] = model | {"overrides": overrides(entry, keys)}
    return result


def overrides(entry: ModelParams, keys: Names) -> dict[str, Any]:
    """Returns the values of a model's entry that replace params at or under `keys`, which are those of params.yaml."""
    replaced = {}
    for key in keys:
        value: Any = {name: getattr(entry, name) for name in OVERRIDDEN}
        for part in key.split("."):
            value = value.get(part, {}) if isinstance(value, dict) else {}
        if value != {}:
            replaced[key] = value
    return replaced


def run(params: Params, root: Path = Path(".")) -> None:
    """Writes the files that differ from those that exist, removes those of former stages, and prints what changed."""
    wanted = contents(params)
    folder = root / FOLDER
    for path in sorted(folder.rglob("*.json")):
        if path.relative_to(folder).as_posix() not in wanted:
            path.unlink()
    changes: dict[str, list[str]] = {}
    for name, content in wanted.items():
        before = _read(folder / name)
        if before != content:
            for change in _changes(before, content):
                changes.setdefault(change, []).append(name.removesuffix(".json"))
            write_json(folder / name, content)
    for change, names in sorted(changes.items()):
        print(f"{change}: {', '.join(_together(names, len(params.models)))}")


def _of_models(params: Params) -> Iterator[tuple[str, str, Names, Names]]:
    """Yields stage, folder of its files, modules and keys; a stage of studies once for each study."""
    for stage, (modules, keys) in OF_A_MODEL.items():
        yield stage, stage, modules, keys
    for stage, (group, modules, keys) in OF_A_STUDY.items():
        for study, options in getattr(params.studies, group):
            if options is not None:
                own = (*modules, f"sparsemm.studies.{study}"), (*keys, f"studies.{group}.{study}")
                yield stage, f"study/{study}", *own


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _changes(before: Any, content: dict[str, Any]) -> Iterator[str]:
    """Yields the names of values that differ; nothing where there was no such file."""
    for part, new in content.items() if isinstance(before, dict) else ():
        old = before.get(part)
        names = {*new, *old} if isinstance(old, dict) else {*new}
        changed = (name for name in sorted(names) if not isinstance(old, dict) or old.get(name) != new.get(name))
        yield from (name if part == "code" else f"{part}.{name}" for name in changed)


def _together(names: list[str], models: int) -> Iterator[str]:
    """Yields stages of which all models are named, and else the names."""
    stages = [name.rpartition("/")[0] for name in names]
    for stage in dict.fromkeys(stages):
        if stage and stages.count(stage) == models > 1:
            yield stage
        else:
            yield from (name for name in names if name.rpartition("/")[0] == stage)
