"""Job templates of work pools whose flow runs are containers, and the addresses that containers cannot reach."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from sparsemm.errors import PipelineError
from sparsemm.registry.client import is_loopback

# Variables that the job template of a Kubernetes pool has beside Prefect's own; prefect.yaml may set each.
VARIABLES = {
    "gpus": ("GPUs of a job", "1"),
    "shared_claim": ("PersistentVolumeClaim with DVC's shared cache, which every node can mount", "sparsemm-shared"),
    "shared_path": ("folder where it is mounted, the same as on the hosts", "/shared"),
    "secret": ("Secret whose entries become environment variables", "sparsemm-secrets"),
}


def job_template(kind: str) -> dict[str, Any]:
    """Returns the job template of a worker type. Prefect ships it, so this needs no network.

    A Kubernetes job also requests GPUs, mounts the shared volume, and reads secrets from the cluster.
    """
    folder = files("prefect.server.api").joinpath("collections_data/views/aggregate-worker-metadata.json")
    workers = json.loads(folder.read_text(encoding="utf-8")).values()
    template: dict[str, Any] = next(types[kind] for types in workers if kind in types)["default_base_job_configuration"]
    if kind == "kubernetes":
        pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
        pod["volumes"] = [{"name": "shared", "persistentVolumeClaim": {"claimName": "{{ shared_claim }}"}}]
        pod["securityContext"] = {"runAsUser": 1000, "runAsNonRoot": True, "fsGroup": 1000}
        (container,) = pod["containers"]
        container["resources"]["limits"]["nvidia.com/gpu"] = "{{ gpus }}"
        container["volumeMounts"] = [{"name": "shared", "mountPath": "{{ shared_path }}"}]
        container["envFrom"] = [{"secretRef": {"name": "{{ secret }}"}}]
        for name, (text, default) in VARIABLES.items():
            entry = {"title": name, "description": text, "type": "string", "default": default}
            template["variables"]["properties"][name] = entry
    return template


def refuse_loopback(variables: dict[str, str]) -> None:
    """Checks that no address points at the host itself, because inside a container it would mean the container.

    Args:
        variables: environment variables that containers get, by name.

    Raises:
        PipelineError: naming the variable, if one does.
    """
    for name, value in variables.items():
        host = urlsplit(value).hostname if "://" in value else None
        if host is not None and (is_loopback(host) or host in ("0.0.0.0", "::")):  # noqa: S104
            hint = "use the name by which other hosts reach the server (docs/operations.md)"
            raise PipelineError(f"{host} is the container itself in a container", where=name, hint=hint)
