"""Checks the packages, the machine and the services that SparseMM uses, and says how to mend what is broken."""

from __future__ import annotations

from pathlib import Path

from sparsemm.doctor.finding import Finding
from sparsemm.doctor.packages import CORE, packages
from sparsemm.errors import ParamsError
from sparsemm.params import Params, load_params

__all__ = ["Finding", "examine"]


def examine(params_file: Path, root: Path = Path(".")) -> list[Finding]:
    """Runs every check once. Checks change nothing and raise nothing, and give each service a few seconds to answer.

    Args:
        params_file: params.yaml, which names stores and the registry; an invalid file is a finding itself. Where there
            is none, only the pipeline is missing: the library needs no such file.
        root: folder that holds artifacts/ and .dvc/.
    """
    params: Params | None = None
    try:
        if params_file == Path("params.yaml") and not params_file.exists():
            raise FileNotFoundError
        params = load_params(params_file)
        params.check_folders(params.models.keys() - params.assembled.keys(), str(params_file))
        text = f"{params_file}: {len(params.models)} models, {len(params.datasets)} data sets"
        findings = [Finding("params", "ok", text)]
    except FileNotFoundError:
        hint = "the pipeline runs in a clone of the repository; the library needs no params.yaml"
        findings = [Finding("params", "absent", "no params.yaml here", hint)]
    except ParamsError as error:
        hint = "correct the file; `sparsemm params --schema` explains keys" if params is None else error.hint or ""
        text = str(error) if params is None else f"{error.where}: {error.what}"
        findings = [Finding("params", "broken", text, hint)]
    findings += packages()
    if any(finding.status == "broken" and finding.name.removeprefix("package ") in CORE for finding in findings):
        return findings  # the other checks import these packages
    from sparsemm.doctor.machine import compiled, decode_backends, disk, gpus, torchvision
    from sparsemm.doctor.services import dvc_remotes, hub, prefect, registry, stores

    findings += [torchvision(), *gpus(), disk(root), *compiled(), *decode_backends()]
    return [*findings, hub(params), *stores(params), *dvc_remotes(root), registry(params, root), prefect()]
