"""What the doctor finds: on this machine, with services that answer and with some that do not."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml

from sparsemm.cli import main
from sparsemm.doctor import examine
from sparsemm.doctor.machine import compiled, disk, torchvision
from sparsemm.doctor.packages import OPTIONAL, packages
from sparsemm.doctor.services import dvc_remotes, hub, knock, prefect, public, registry, stores
from sparsemm.params import parse_params
from tests.servers import free_port

ROOT = Path(__file__).parents[2]
OWN = ROOT / "params.yaml"


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    """No service of the environment's, and none that is waited for."""
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "MLFLOW_TRACKING_URI", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")


def changed(**parts):
    return parse_params(yaml.safe_dump(yaml.safe_load(OWN.read_text(encoding="utf-8")) | parts))


def only(findings, name):
    (found,) = [one for one in findings if one.name == name]
    return found


def test_this_machine_is_looked_at_whole_and_nothing_is_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = examine(OWN, tmp_path)
    names = [one.name for one in found]
    for wanted in ("params", "python", "package torch", "disk", "hub", "s3", "dvc remote", "registry", "prefect"):
        assert wanted in names
    assert only(found, "params").status == "ok" and only(found, "package torch").status == "ok"
    assert only(found, "hub").status == "absent"  # it does not answer, and nothing here needs it
    assert all(one.hint for one in found if one.status != "ok")
    assert list(tmp_path.iterdir()) == []


def test_json_is_a_list_and_something_broken_is_an_exit_status(tmp_path, capsys):
    (tmp_path / "params.yaml").write_text("models: 3\n", encoding="utf-8")
    code = main(["--params", str(tmp_path / "params.yaml"), "--root", str(tmp_path), "doctor", "--json"])
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert code == 1 and "params" in printed.err
    assert {frozenset(one) for one in found} == {frozenset({"name", "status", "detail", "hint"})}
    status = {one["name"]: one["status"] for one in found}
    assert status["params"] == "broken" and status["hub"] == "absent"  # which nobody can tell to be needed


def test_a_checkpoint_that_is_not_there_is_no_matter_of_the_hub(tmp_path):
    models = {"gone": {"checkpoint": "./nothing", "family": "qwen2_vl"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(yaml.safe_load(OWN.read_text()) | {"models": models}))
    found = examine(tmp_path / "params.yaml", tmp_path)
    assert only(found, "params").status == "broken" and "models remove gone" in only(found, "params").hint
    assert only(found, "hub").status == "absent"


def test_without_torch_it_still_says_so(monkeypatch, tmp_path):
    def without_torch(name):
        if name == "torch":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(sys.modules["sparsemm.doctor.packages"], "version", without_torch)
    found = examine(OWN, tmp_path)
    assert only(found, "package torch").status == "broken" and found[-1].name.startswith("package")


def test_little_room_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**30})())
    found = disk(tmp_path / "not" / "there")
    assert found.status == "broken" and "1.0 GiB free" in found.detail


def test_a_torchvision_of_another_build_is_told_with_both_ways_out(monkeypatch):
    machine = sys.modules["sparsemm.doctor.machine"]
    monkeypatch.setattr(machine, "version", {"torch": "2.13.0+cpu", "torchvision": "0.28.0"}.__getitem__)
    monkeypatch.setattr(machine, "define_missing_torchvision_operators", lambda: True)
    found = torchvision()
    assert found.status == "absent" and "0.28.0 beside torch 2.13.0+cpu: its operators do not load" in found.detail
    assert "install torchvision from the same index" in found.hint and "-m sparsemm.evaluate.lmms_eval" in found.hint
    monkeypatch.setattr(machine, "define_missing_torchvision_operators", lambda: False)
    assert torchvision().status == "ok"

    def not_there(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(machine, "version", not_there)
    assert torchvision().status == "absent" and "pip install torchvision" in torchvision().hint


def test_a_machine_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("NVCC", "no-such-nvcc")
    cpu, cuda = compiled()
    assert cpu.status == "broken" and "no-such-compiler was not found" in cpu.detail
    assert "no-such-nvcc was not found" in cuda.detail
    monkeypatch.setenv("SPARSEMM_KERNELS", "off")
    assert [one.status for one in compiled()] == ["absent"]


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://user:canary@host:5000/a?token=canary", "http://host:5000/a"),
        ("https://host", "https://host"),
        ("/a/folder", "/a/folder"),
    ],
)
def test_addresses_are_shown_without_secrets(address, shown):
    assert public(address) == shown


def test_servers_that_answer_refuse_or_are_silent(monkeypatch, request):
    server = request.getfixturevalue("hub")  # `hub` is what is tested
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    assert hub(None).status == "ok"
    dead = f"http://someone:canary@127.0.0.1:{free_port()}"
    found = knock("registry", dead, "/health", "start it")
    assert found.status == "broken" and found.hint == "start it" and "canary" not in found.detail
    assert knock("registry", "file:///etc/passwd", "", "x").status == "broken"
    assert knock("registry", "http://[", "", "x").status == "broken"


def test_a_hub_that_something_needs_must_answer(monkeypatch):
    wanted = {"source": "hub", "repo": "a/b", "format": "synthdog", "samples": 8}
    own = yaml.safe_load(OWN.read_text(encoding="utf-8"))["datasets"]
    params = changed(datasets=own | {"more": wanted})
    assert hub(params).status == "broken"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub(params).status == "absent"


def test_stores_of_params_are_asked(store, store_proxy, monkeypatch):
    store.put_object(Bucket="bucket", Key="incoming/config.json", Body=b"{}")
    watch = {name: {"source": "s3", "location": f"s3://{name}/incoming"} for name in ("bucket", "nobody")}
    here, gone = stores(changed(watch=watch))
    assert here.status == "ok"
    assert gone.status == "broken" and "is not there" in gone.detail
    assert [one.status for one in stores(changed())] == ["absent"]
    assert stores(None) == []


def test_remotes_of_dvc(tmp_path, store, store_proxy):
    assert dvc_remotes(tmp_path)[0].detail.startswith("no DVC repository")
    folder = tmp_path / ".dvc"
    folder.mkdir()
    (folder / "config").write_text("[core]\n    remote = near\n", encoding="utf-8")
    assert dvc_remotes(tmp_path)[0].detail == "none"
    (folder / "config").write_text(
        f"['remote \"near\"']\n    url = ../shelf\n['remote \"far\"']\n    url = s3://bucket/dvc\n"
        f"    endpointurl = {store_proxy.url}\n['remote \"other\"']\n    url = ssh://me:canary@host/path\n",
        encoding="utf-8",
    )
    (folder / "config.local").write_text("", encoding="utf-8")
    near, far, other = dvc_remotes(tmp_path)
    assert (near.name, near.status) == ("dvc remote near", "broken")
    assert far.status == "ok" and "canary" not in other.detail
    (tmp_path / "shelf").mkdir()
    assert dvc_remotes(tmp_path)[0].status == "ok"
    (folder / "config").write_text("no section", encoding="utf-8")
    assert dvc_remotes(tmp_path)[0].status == "broken"


def test_the_registry_is_a_file_or_a_server(monkeypatch, tmp_path):
    assert registry(None, tmp_path).status == "absent"
    file = tmp_path / "artifacts" / "registry" / "mlflow.db"
    file.parent.mkdir(parents=True)
    file.touch()
    assert registry(None, tmp_path).status == "ok"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    assert registry(None, tmp_path).status == "broken"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:canary@127.0.0.1:1")
    assert "canary" not in str(registry(None, tmp_path))


def test_the_prefect_server_of_the_environment_or_of_the_profile(monkeypatch, tmp_path):
    assert prefect().status == "absent"
    home = tmp_path / "prefect"
    home.mkdir()
    address = f"http://127.0.0.1:{free_port()}/api"
    (home / "profiles.toml").write_text(
        f'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "{address}"\n', encoding="utf-8"
    )
    found = prefect()
    assert found.status == "broken" and address in found.detail
    (home / "profiles.toml").write_text("active = [", encoding="utf-8")
    assert prefect().status == "absent"


def test_decode_backends_are_told_once_for_devices_of_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from sparsemm.doctor.machine import decode_backends
    from sparsemm.ops import fastest

    assert decode_backends() == [] or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(fastest, "device_name", lambda device: "A" if device.index < 2 else "B")
    monkeypatch.setattr(fastest, "measured", lambda device: [{"backend": "ours"}, {"backend": "flash"}] * 2)
    one, other = decode_backends()
    assert (
        one.status == "ok" and one.detail == "A: fastest for 4 shapes: flash for 2, ours for 2" and "B" in other.detail
    )
    monkeypatch.setattr(fastest, "measured", lambda device: [])
    (untimed,) = decode_backends()
    assert untimed.status == "absent" and "bench backends --keep" in untimed.hint


def test_outside_a_repository_nothing_is_broken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    findings = examine(Path("params.yaml"))
    assert only(findings, "params").status == "absent" and [one for one in findings if one.status == "broken"] == []
    assert only(examine(Path("other.yaml")), "params").status == "broken"  # a file that was asked for


def test_what_is_missing_is_installed_by_the_extra_that_pins_it(monkeypatch):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for name, (extra, _) in OPTIONAL.items():
        assert any(re.split(r"[\[<>=]", requirement)[0] == name for requirement in extras[extra]), name

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(sys.modules["sparsemm.doctor.packages"], "version", missing)
    hints = {finding.name: finding.hint for finding in packages() if finding.status != "ok"}
    assert "pip install '.[registry]'" in hints["package mlflow"] and "pip install '.'" in hints["package torch"]
