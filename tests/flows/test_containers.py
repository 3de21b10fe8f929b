"""Jobs of the Kubernetes pool, as Prefect's own worker renders them, against the schema of Kubernetes."""

from __future__ import annotations

from uuid import uuid4

import kubernetes_validate
import pytest
import yaml

from flows.containers import VARIABLES, job_template, refuse_loopback
from sparsemm.errors import PipelineError
from tests.repository import ROOT

VERSION = "1.32"


@pytest.fixture
def job(prefect_api):
    """The Job that a worker would send to the cluster for the deployment of prefect.yaml."""
    import asyncio

    from prefect.client.schemas.objects import FlowRun
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    (entry,) = [
        entry
        for entry in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
        if entry["work_pool"]["name"] == "kubernetes"
    ]
    variables = entry["work_pool"]["job_variables"] | {"image": "sparsemm:1", "shared_path": "/shared"}
    variables["env"] = {"MLFLOW_TRACKING_URI": "http://registry:5000", "PREFECT_API_URL": "http://prefect:4200/api"}
    configuration = asyncio.run(
        KubernetesWorkerJobConfiguration.from_template_and_values(job_template("kubernetes"), variables)
    )
    configuration.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="stages of tiny-qwen2-vl"))
    job = configuration.job_manifest
    for name in ("parallelism", "completions"):  # Prefect insists on these in the pod, where a cluster ignores them
        del job["spec"]["template"]["spec"][name]
    return job


def test_a_job_has_a_gpu_the_shared_volume_and_the_secret_and_fits_the_schema(job):
    kubernetes_validate.validate(job, VERSION, strict=True)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": "1"}
    assert container["resources"]["requests"] == {"cpu": "4", "memory": "16Gi"}
    assert pod["volumes"] == [{"name": "shared", "persistentVolumeClaim": {"claimName": "sparsemm-shared"}}]
    assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
    assert container["envFrom"] == [{"secretRef": {"name": "sparsemm-secrets"}}]
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert values["PREFECT_API_URL"] == "http://prefect:4200/api"
    assert "{{" not in yaml.safe_dump(job)


def test_a_job_can_clone_the_clone_on_the_shared_volume(repository, tmp_path, monkeypatch):
    """`file:///shared/repository` of deploy/kubernetes: the step of prefect.yaml takes such an address."""
    from prefect.deployments.steps import git_clone

    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path / "job")
    step = git_clone(repository=f"file://{repository.root}", branch="main")
    assert (tmp_path / "job" / step["directory"] / "dvc.yaml").is_file()


def test_the_schema_notices_what_is_wrong(job):
    job["spec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSION, strict=True)


def test_every_variable_of_the_template_is_used():
    template = job_template("kubernetes")
    text = yaml.safe_dump(template["job_configuration"])
    assert all("{{ " + name + " }}" in text for name in VARIABLES)
    assert "gpus" not in job_template("docker")["variables"]["properties"]


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:5000", "http://localhost:4200/api", "http://[::1]:5000", "http://0.0.0.0:1", "http://127.1.2.3"],
)
def test_addresses_of_the_host_itself_are_refused(address):
    with pytest.raises(PipelineError, match="MLFLOW_TRACKING_URI"):
        refuse_loopback({"MLFLOW_TRACKING_URI": address})


@pytest.mark.parametrize(
    "value", ["http://registry:5000", "https://10.0.0.5/api", "some-image", "/shared", "file:///shared/repository"]
)
def test_other_values_are_not(value):
    refuse_loopback({"NAME": value})
