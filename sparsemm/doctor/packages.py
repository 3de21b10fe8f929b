"""Python and its packages, looked at without importing any of them."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from sparsemm.doctor.finding import Finding

CORE = ("torch", "transformers", "numpy", "safetensors", "pillow", "pydantic", "pyyaml")
OPTIONAL = {
    "pyarrow": "the stages that read and write data sets",
    "lmms-eval": "`sparsemm evaluate`",
    "plotly": "`sparsemm report`",
    "dvc": "`dvc repro`",
    "prefect": "flows/",
    "mlflow": "the registry",
    "boto3": "s3:// places",
    "pypdfium2": "pdf data sets",
    "flash-attn": "one more decode backend on GPUs",
}


def packages() -> list[Finding]:
    """Python, the packages the core needs, and those that some commands need."""
    found = [Finding("python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")]
    for name in CORE:
        try:
            found.append(Finding(f"package {name}", "ok", version(name)))
        except PackageNotFoundError:
            found.append(Finding(f"package {name}", "broken", "not installed", f"pip install {name}"))
    for name, use in OPTIONAL.items():
        try:
            found.append(Finding(f"package {name}", "ok", version(name)))
        except PackageNotFoundError:
            found.append(Finding(f"package {name}", "absent", "not installed", f"pip install {name}, for {use}"))
    return found
