"""The manifests for Kubernetes: rendered, against its schema, and against the programs that they start."""

from __future__ import annotations

import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml

from sparsemm.cli import _parser
from tests.repository import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
VERSION = "1.32"


def rendered():
    """All manifests: by kubectl, or where there is none the files as they are."""
    if shutil.which("kubectl"):
        done = subprocess.run(["kubectl", "kustomize", str(FOLDER)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        texts = [done.stdout]
    else:
        texts = [(FOLDER / name).read_text(encoding="utf-8") for name in kustomization()["resources"]]
    return [manifest for text in texts for manifest in yaml.safe_load_all(text)]


def kustomization():
    return yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))


MANIFESTS = rendered()
PODS = {m["metadata"]["name"]: m["spec"]["template"]["spec"] for m in MANIFESTS if m["kind"] == "Deployment"}
CONTAINERS = [c for pod in PODS.values() for c in [*pod.get("initContainers", []), *pod["containers"]]]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda m: f"{m['kind']}-{m['metadata']['name']}")
def test_manifests_fit_the_schema(manifest):
    kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_the_schema_notices_a_mistake():
    manifest = yaml.safe_load(yaml.safe_dump(next(m for m in MANIFESTS if m["kind"] == "Deployment")))
    manifest["spec"]["template"]["spec"]["containers"][0]["port"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_every_container_has_limits_the_environment_and_no_root():
    for pod in PODS.values():
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
    for container in CONTAINERS:
        assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"]
        sources = [next(iter(one.values()))["name"] for one in container["envFrom"]]
        assert sources[0].startswith("sparsemm") and sources[1] == "sparsemm-secrets"
    (service,) = PODS["service"]["containers"]
    assert service["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_what_is_mounted_is_claimed_and_what_is_asked_for_is_served():
    claims = {m["metadata"]["name"] for m in MANIFESTS if m["kind"] == "PersistentVolumeClaim"}
    used = {v["persistentVolumeClaim"]["claimName"] for pod in PODS.values() for v in pod.get("volumes", [])}
    assert used == claims
    services = {m["metadata"]["name"]: m["spec"]["ports"][0]["port"] for m in MANIFESTS if m["kind"] == "Service"}
    literals = dict(one.split("=", 1) for one in kustomization()["configMapGenerator"][0]["literals"])
    assert literals["MLFLOW_TRACKING_URI"] == f"http://registry:{services['registry']}"
    for name in ("PREFECT_API_URL", "SPARSEMM_PREFECT_API_URL"):
        assert literals[name] == f"http://prefect:{services['prefect']}/api"
    assert not any("127.0.0.1" in value or "localhost" in value for value in literals.values())


def test_prefect_yaml_finds_every_variable_that_it_uses():
    import re

    literals = dict(one.split("=", 1) for one in kustomization()["configMapGenerator"][0]["literals"])
    text = (ROOT / "prefect.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"\$(\w+) }}", text)) - {"SPARSEMM_ROOT"} <= literals.keys()  # which the command sets


def test_commands_are_those_of_sparsemm():
    commands = [c["args"][1:] for c in CONTAINERS if c.get("args", [""])[0] == "sparsemm"]
    assert len(commands) == 2
    parsed = [vars(_parser().parse_known_args(words)[0]) for words in commands]
    (registry,) = [one for one in parsed if one["command"] == "registry"]
    assert registry["host"] == "0.0.0.0" and registry["auth"] and registry["allow_host"] == ["registry"]
