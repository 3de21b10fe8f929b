"""Promotes a version to champion if it passes the gate, and rolls a champion back."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sparsemm.errors import RegistryError
from sparsemm.params import Params
from sparsemm.recipes import Recipe
from sparsemm.registry import manifest
from sparsemm.registry.client import MISSING, answering, connect, ignoring, model_name, registry_uri
from sparsemm.registry.contents import recipe_name
from sparsemm.registry.description import with_gate
from sparsemm.registry.gate import Evidence, Verdict, judge
from sparsemm.registry.lease import Lease, lease
from sparsemm.registry.publish import CANDIDATE
from sparsemm.scores import ScoreTable

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
REPLACED = "replaced_champion"  # tag of a champion: the version that it replaced
LONGEST = 4000  # characters that a tag may have


@dataclass(frozen=True)
class Promotion:
    """The result of a promotion or rollback."""

    name: str  # registered model
    version: str  # version to promote
    before: str | None  # version that the alias pointed at before, or None
    moved: bool  # whether this call moved the alias to `version`
    verdict: Verdict | None  # verdict of the gate; None if it was not asked (to candidate, rollback, already champion)
    # whether the gate gave this version the same verdict, for the same reasons, when it was asked last
    repeated: bool = False


def promote(
    params: Params,
    key: str,
    root: Path = Path("."),
    *,
    to: Literal["candidate", "champion"] = "champion",
    version: str | None = None,
    tracking_uri: str | None = None,
) -> Promotion:
    """Points an alias of visual-heads.<key> at a version. To become `champion`, the version must pass the gate.

    An alias is one row that is replaced in one transaction, so a reader sees either the old version or the new one.
    Publishers and promoters take turns (see `sparsemm.registry.lease.lease` for what that guarantees). The champion
    that the candidate was compared with must still be champion when the alias is moved. Before that, the verdict and
    its reasons are written to the version's tags, whether it passed or failed. The version is by default the current
    candidate.

    Raises RegistryError if there is no such version, its files differ from what was published, or the alias was moved
    at the same time, and RegistryUnreachable if the registry is down.
    """
    name, uri = model_name(key), registry_uri(tracking_uri, params, root)
    client = connect(uri)
    with answering(uri), lease(client, uri, name) as held:
        chosen = _by_alias(client, name, CANDIDATE) if version is None else _by_number(client, name, version)
        if chosen is None:
            raise RegistryError("no candidate", where=name, hint=f"`sparsemm publish {key}` creates one")
        before = _by_alias(client, name, to)
        number, old = str(chosen.version), None if before is None else str(before.version)
        if number == old:
            return Promotion(name, number, old, False, None)
        verdict, repeated = None, False
        if to == CHAMPION:
            now = None if before is None else _evidence(client, before)
            verdict = judge(_evidence(client, chosen), now, params.registry.gate)
            repeated = _record(client, chosen, verdict, old)
            if not verdict.passed:
                return Promotion(name, number, old, False, verdict, repeated)
            if old is not None:
                client.set_model_version_tag(name, number, REPLACED, old)
            elif REPLACED in client.get_model_version(name, number).tags:
                client.delete_model_version_tag(name, number, REPLACED)
        _move(client, held, name, to, old, number)
    return Promotion(name, number, old, True, verdict, repeated)


def rollback(params: Params, key: str, root: Path = Path("."), *, tracking_uri: str | None = None) -> Promotion:
    """Makes the version that the champion replaced champion again. It passed the gate then and is not judged again.

    Calling it again goes back one version further. Raises RegistryError if there is no champion, or it is the first
    one, and RegistryUnreachable if the registry is down.
    """
    name, uri = model_name(key), registry_uri(tracking_uri, params, root)
    client = connect(uri)
    with answering(uri), lease(client, uri, name) as held:
        champion = _by_alias(client, name, CHAMPION)
        if champion is None:
            raise RegistryError("no champion", where=name, hint=f"`sparsemm promote {key} --to champion`")
        previous = champion.tags.get(REPLACED)
        if previous is None:
            raise RegistryError(f"version {champion.version} is the first champion", where=name)
        back, number = _by_number(client, name, previous), str(champion.version)
        text = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}: back to version {previous}"
        client.set_model_version_tag(name, number, "rolled_back", text)
        _move(client, held, name, CHAMPION, number, str(back.version))
    return Promotion(name, str(back.version), number, True, None)


def _by_alias(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    with ignoring(*MISSING):
        return client.get_model_version_by_alias(name, alias)
    return None


def _by_number(client: MlflowClient, name: str, version: str) -> ModelVersion:
    with ignoring(*MISSING):
        return client.get_model_version(name, version)
    raise RegistryError(f"no version {version!r}", where=name, hint="MLflow's UI lists the versions")


def _evidence(client: MlflowClient, version: ModelVersion) -> Evidence:
    """Downloads the score table, accuracy and recipe, if any, of a version, checked against their checksums."""
    key = version.name.removeprefix("visual-heads.")
    table, accuracy = f"scores/{key}.safetensors", f"evaluate/{key}.json"
    recipes = [recipe_name(key)] if "recipe_sha256" in version.tags else []
    with tempfile.TemporaryDirectory(prefix="sparsemm-") as temporary:
        folder = Path(temporary)
        manifest.fetch_version(client, version, [table, accuracy, *recipes], folder)
        values = json.loads((folder / accuracy).read_text(encoding="utf-8"))
        loaded = ScoreTable.load(folder / table)
        recipe = Recipe.load(folder / recipes[0]) if recipes else None
    return Evidence(str(version.version), loaded.header["revision"], loaded, values, recipe)


def _record(client: MlflowClient, version: ModelVersion, verdict: Verdict, against: str | None) -> bool:
    """Writes the gate's verdict to the version's tags and description, and tells whether it was the last one too."""
    name, number, when = version.name, str(version.version), f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    tags = {
        "gate": "passed" if verdict.passed else "failed",
        "gate_reasons": "\n".join(verdict.reasons)[:LONGEST],
        "gate_against": against or "none",
        "gate_at": when,
    }
    repeated = all(version.tags.get(tag) == value for tag, value in tags.items() if tag != "gate_at")
    for tag, value in tags.items():
        client.set_model_version_tag(name, number, tag, value)
    client.update_model_version(name, number, with_gate(version.description or "", verdict, against, when))
    return repeated


def _move(client: MlflowClient, held: Lease, name: str, alias: str, before: str | None, to: str) -> None:
    """Moves an alias from `before` to another version, and checks that nobody else moved it at the same time."""
    held.check()
    now = _by_alias(client, name, alias)
    if (None if now is None else str(now.version)) != before:
        raise RegistryError(f"{alias} was moved meanwhile", where=name, hint="run the command again")
    client.set_registered_model_alias(name, alias, to)
    now = _by_alias(client, name, alias)
    if now is None or str(now.version) != to:
        hint = "check which version it should be, and run the command again"
        raise RegistryError(f"another process moved {alias} at the same time", where=name, hint=hint)
