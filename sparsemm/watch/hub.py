"""Watches a branch of a checkpoint on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsemm.errors import WatchError
from sparsemm.params import WatchParams
from sparsemm.watch.arrival import Arrival


def newest(source: WatchParams, key: str, root: Path) -> Arrival | None:
    """Returns the commit that `branch` points at, without downloading it. HF_ENDPOINT and HF_TOKEN apply.

    Raises:
        WatchError: if the hub cannot be reached, or has no such checkpoint or branch.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    where = f"watch.{key}: {source.location}"
    transport: Any = HfHubHTTPError.__bases__[0]  # the error of the HTTP library that huggingface_hub uses
    try:
        sha = HfApi().model_info(source.location, revision=source.branch, timeout=30).sha
    except (HfHubHTTPError, transport, HFValidationError, OSError) as error:
        hint = "check the id, the branch and the network"
        raise WatchError(f"cannot read the branch from the hub: {error}", where=where, hint=hint) from error
    return Arrival(source.location, sha) if sha else None
