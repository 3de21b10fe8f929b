"""Checks Python and the installed packages without importing them."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from sparsemm.doctor.finding import Finding

CORE = ("torch", "transformers", "numpy", "safetensors", "pillow", "pydantic", "pyyaml")
OPTIONAL = {  # package -> the extra that has it in the right version, and what it is for
    "pyarrow": ("stages", "the stages that read and write data sets"),
    "lmms-eval": ("stages", "`sparsemm evaluate`"),
    "plotly": ("stages", "`sparsemm report`"),
    "dvc": ("flows", "`dvc repro`"),
    "prefect": ("flows", "flows/"),
    "mlflow": ("registry", "the registry"),
    "boto3": ("s3", "s3:// addresses"),
    "pypdfium2": ("pdf", "PDF data sets"),
    "flash-attn": ("gpu", "one more decode backend on GPUs"),
}


def packages() -> list[Finding]:
    """Reports Python, the packages that the core needs, and those that some commands need."""
    findings = [Finding("python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")]
    for name in (*CORE, *OPTIONAL):
        try:
            findings.append(Finding(f"package {name}", "ok", version(name)))
        except PackageNotFoundError:
            status: Literal["absent", "broken"] = "absent" if name in OPTIONAL else "broken"
            extra, use = OPTIONAL.get(name, ("", "everything"))
            hint = f"`pip install '.{f'[{extra}]' if extra else ''}'` in a clone of SparseMM, for {use}"
            findings.append(Finding(f"package {name}", status, "not installed", hint))
    return findings
