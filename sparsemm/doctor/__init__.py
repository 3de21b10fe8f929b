"""`sparsemm doctor`: what this machine has, what answers, and what to do about the rest."""

from __future__ import annotations

from pathlib import Path

from sparsemm.doctor.finding import Finding
from sparsemm.doctor.packages import CORE, packages
from sparsemm.errors import ParamsError
from sparsemm.params import Params, load_params

__all__ = ["Finding", "examine"]


def examine(params_file: Path, root: Path = Path(".")) -> list[Finding]:
    """Look at everything once; nothing is changed, and no look raises. A service is given a few seconds to answer.

    Args:
        params_file: params.yaml, which names stores and the registry; a wrong one is a finding itself.
        root: folder that holds artifacts/ and .dvc/.
    """
    params: Params | None = None
    try:
        params = load_params(params_file)
        params.check_folders(params.models, str(params_file))
        found = [
            Finding("params", "ok", f"{params_file}: {len(params.models)} models, {len(params.datasets)} data sets")
        ]
    except ParamsError as error:
        hint = "correct the file; `sparsemm params --schema` explains keys" if params is None else error.hint or ""
        what = str(error) if params is None else f"{error.where}: {error.what}"
        found = [Finding("params", "broken", what, hint)]
    found += packages()
    if any(one.status == "broken" and one.name.removeprefix("package ") in CORE for one in found):
        return found  # what follows needs them
    from sparsemm.doctor.machine import compiled, decode_backends, disk, gpus, torchvision
    from sparsemm.doctor.services import dvc_remotes, hub, prefect, registry, stores

    found += [torchvision(), *gpus(), disk(root), *compiled(), *decode_backends()]
    return [*found, hub(params), *stores(params), *dvc_remotes(root), registry(params, root), prefect()]
