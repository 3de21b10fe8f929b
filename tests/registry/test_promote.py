"""Aliases: forward through the gate, back without it, one promoter at a time."""

from __future__ import annotations

import pytest

from sparsemm.errors import RegistryError, RegistryUnreachable
from sparsemm.registry.client import connect, default_store
from sparsemm.registry.promote import promote, rollback
from sparsemm.registry.publish import publish

NAME = "visual-heads.m"


@pytest.fixture
def made(local):
    """A workspace whose first version is published."""
    workspace = local("m")
    publish(workspace.params, "m", workspace.root)
    return workspace


def again(workspace, **results):
    workspace.ran("m", **results)
    return publish(workspace.params, "m", workspace.root).version


def alias(workspace, name="champion"):
    return str(connect(default_store(workspace.root)).get_model_version_by_alias(NAME, name).version)


def tags(workspace, version):
    return connect(default_store(workspace.root)).get_model_version(NAME, version).tags


def test_the_first_candidate_becomes_champion_and_its_reasons_are_recorded(made):
    done = promote(made.params, "m", made.root)
    assert (done.version, done.before, done.moved, done.verdict.passed) == ("1", None, True, True)
    assert alias(made) == "1" and tags(made, "1")["gate"] == "passed"
    assert tags(made, "1")["gate_reasons"] == "\n".join(done.verdict.reasons)
    assert not promote(made.params, "m", made.root).moved


def test_a_candidate_that_fails_stays_candidate_and_says_why(made):
    promote(made.params, "m", made.root)
    again(made, accuracy=0.5)
    done = promote(made.params, "m", made.root)
    assert not done.moved and not done.verdict.passed
    assert alias(made) == "1" and alias(made, "candidate") == "2"
    recorded = tags(made, "2")
    assert recorded["gate"] == "failed" and recorded["gate_against"] == "1"
    assert "FAIL: read: sparsemm 0.5000 at budget 48" in recorded["gate_reasons"]


def test_rollback_goes_back_step_by_step_and_stops_at_the_first(made):
    promote(made.params, "m", made.root)
    for accuracy in (0.91, 0.92):
        again(made, accuracy=accuracy)
        assert promote(made.params, "m", made.root).moved
    assert alias(made) == "3"
    assert rollback(made.params, "m", made.root).version == "2" and alias(made) == "2"
    assert "back to version 2" in tags(made, "3")["rolled_back"]
    assert rollback(made.params, "m", made.root).version == "1" and alias(made) == "1"
    with pytest.raises(RegistryError, match="first champion"):
        rollback(made.params, "m", made.root)
    assert promote(made.params, "m", made.root, version="3").before == "1"
    assert rollback(made.params, "m", made.root).version == "1"


def test_an_older_version_can_be_candidate_again_without_the_gate(made):
    again(made, accuracy=0.5)
    assert promote(made.params, "m", made.root, to="candidate", version="1").moved
    assert alias(made, "candidate") == "1" and "gate" not in tags(made, "1")


def test_what_is_not_there_cannot_be_promoted(made):
    with pytest.raises(RegistryError, match="no version '7'"):
        promote(made.params, "m", made.root, version="7")
    with pytest.raises(RegistryError, match="no version 'x'"):
        promote(made.params, "m", made.root, version="x")
    with pytest.raises(RegistryError, match="no candidate"):
        promote(made.params, "other", made.root)
    with pytest.raises(RegistryError, match="no champion"):
        rollback(made.params, "m", made.root)
    with pytest.raises(RegistryError, match="not a model key"):
        promote(made.params, "m' or name='x", made.root)


def test_a_version_whose_files_were_changed_is_refused(made):
    (table,) = (made.root / "artifacts" / "registry" / "files").rglob("*.safetensors")
    table.write_bytes(table.read_bytes()[:-1] + b"!")
    with pytest.raises(RegistryError, match="not the file that was published"):
        promote(made.params, "m", made.root)
    assert "champion" not in connect(default_store(made.root)).get_registered_model(NAME).aliases


def test_a_champion_moved_by_other_hands_in_between_is_noticed(made, monkeypatch):
    promote(made.params, "m", made.root)
    again(made, accuracy=0.91)
    again(made, accuracy=0.92)
    from sparsemm.registry import promote as module

    real = module.judge

    def meanwhile(*arguments):
        connect(default_store(made.root)).set_registered_model_alias(NAME, "champion", "2")
        return real(*arguments)

    monkeypatch.setattr(module, "judge", meanwhile)
    with pytest.raises(RegistryError, match="moved meanwhile"):
        promote(made.params, "m", made.root)
    assert alias(made) == "2"


def test_two_promoters_on_two_hosts_move_it_once(server, workspace, script, tmp_path):
    made = workspace("race")
    publish(made.params, "race", made.root, tracking_uri=server.uri)
    promote(made.params, "race", made.root, tracking_uri=server.uri)
    made.ran("race", accuracy=0.92)
    publish(made.params, "race", made.root, tracking_uri=server.uri)
    reports = script("both", made.root, server.uri, "promote", "race", tmp_path / "a", tmp_path / "b")
    assert sorted(report["moved"] for report in reports) == [False, True]
    version = connect(server.uri).get_model_version_by_alias("visual-heads.race", "champion")
    assert str(version.version) == "2" and version.tags["replaced_champion"] == "1"


def test_a_registry_that_is_down_is_told(wire, workspace):
    made = workspace("m")
    wire.cut()
    with pytest.raises(RegistryUnreachable, match="does not answer"):
        promote(made.params, "m", made.root, tracking_uri=wire.uri)
