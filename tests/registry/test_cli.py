"""The commands: what they print and how they end."""

from __future__ import annotations

import json

import pytest

from sparsemm.cli import main
from sparsemm.files import sha256_file
from sparsemm.registry.client import default_store


@pytest.fixture
def run(local, capsys, monkeypatch):
    """`run(*words)`: exit status, standard output and standard error of the command in a fresh workspace."""
    made = local("m")
    monkeypatch.chdir(made.root)

    def call(*words):
        status = main(list(words))
        return status, *capsys.readouterr()

    call.made = made
    return call


def test_from_publication_to_look_up_and_back(run):
    for end in ("published", "was published before"):
        status, out, _ = run("publish", "m")
        version, registry, page = out.splitlines()
        assert (status, version) == (0, f"visual-heads.m version 1: {end}")
        assert registry == f"registry: {default_store(run.made.root)}"
        assert page.startswith("page: http://127.0.0.1:5000/#/models/visual-heads.m/versions/1 (")
    status, out, _ = run("promote", "m", "--to", "champion")
    assert status == 0 and out.endswith("visual-heads.m: champion is version 1, before none\n") and "pass: " in out
    assert run("promote", "m", "--to", "champion")[:2] == (0, "visual-heads.m: champion is version 1, before 1\n")
    status, out, _ = run("lookup", "models:/visual-heads.m@champion", "--json")
    found = json.loads(out)
    assert found["version"] == "1" and found["digest"] == sha256_file(found["path"])
    assert len(found["scores"]) == 5 and found["fingerprint"] == "print-m"
    run.made.ran("m", accuracy=0.5)
    run("publish", "m", "--flow-run", "7")
    status, out, err = run("promote", "m", "--to", "champion")
    assert status == 1 and "FAIL: read" in out and "version 2 did not pass the gate" in err
    assert run("promote", "m", "--to", "candidate", "--version", "1")[0] == 0
    status, _, err = run("rollback", "m")
    assert status == 1 and "first champion" in err


def test_a_look_up_asks_where_the_publication_is(run, monkeypatch, tmp_path):
    """From another folder by --root and --params, and at the address of params.yaml."""
    root = run.made.root
    assert run("publish", "m")[0] == 0
    monkeypatch.chdir(tmp_path.parent)
    words = ["--root", str(root), "--params", str(root / "params.yaml"), "lookup", "models:/visual-heads.m@candidate"]
    assert run(*words)[0] == 0
    run.made.raw["registry"]["tracking_uri"] = "http://127.0.0.1:9"
    (root / "params.yaml").write_text(json.dumps(run.made.raw))
    status, _, err = run(*words[:-1], "models:/visual-heads.m/1")
    assert status == 1 and "127.0.0.1:9" in err


def test_looking_up_a_path_prints_no_scores(run):
    status, out, _ = run("lookup", "artifacts/scores/m.safetensors")
    assert status == 0 and "fingerprint: print-m" in out and "scores:" not in out


def test_what_is_not_there_ends_with_a_hint(run):
    status, out, err = run("lookup", "models:/visual-heads.m@champion")
    assert (status, out) == (1, "") and "sparsemm promote" in err
    status, out, err = run("publish", "unknown")
    assert (status, out) == (1, "") and "known: m" in err
