"""Checks Python and the installed packages without importing them."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from sparsemm.doctor.finding import Finding

CORE = ("torch", "transformers", "numpy", "safetensors", "pillow", "pydantic", "pyyaml")
OPTIONAL = {
    "pyarrow": "the stages that read and write data sets",
    "lmms-eval": "`sparsemm evaluate`",
    "plotly": "`sparsemm report`",
    "dvc": "`dvc repro`",
    "prefect": "flows/",
    "mlflow": "the registry",
    "boto3": "s3:// addresses",
    "pypdfium2": "PDF data sets",
    "flash-attn": "one more decode backend on GPUs",
}


def packages() -> list[Finding]:
    """Reports Python, the packages that the core needs, and those that some commands need."""
    findings = [Finding("python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")]
    for name in (*CORE, *OPTIONAL):
        try:
            findings.append(Finding(f"package {name}", "ok", version(name)))
        except PackageNotFoundError:
            use = f", for {OPTIONAL[name]}" if name in OPTIONAL else ""
            status: Literal["absent", "broken"] = "absent" if name in OPTIONAL else "broken"
            findings.append(Finding(f"package {name}", status, "not installed", f"pip install {name}{use}"))
    return findings
