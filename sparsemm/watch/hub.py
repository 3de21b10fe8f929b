"""A branch of a checkpoint on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsemm.errors import WatchError
from sparsemm.params import WatchParams
from sparsemm.watch.arrival import Arrival


def newest(source: WatchParams, key: str, root: Path) -> Arrival | None:
    """The commit that `branch` points at; nothing is downloaded, the stages do that. HF_ENDPOINT and HF_TOKEN count.

    Raises:
        WatchError: if the hub cannot be reached, or has no such checkpoint or branch.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    where = f"watch.{key}: {source.location}"
    transport: Any = HfHubHTTPError.__bases__[0]  # of the HTTP library this version of the hub's client is built on
    try:
        sha = HfApi().model_info(source.location, revision=source.branch, timeout=30).sha
    except (HfHubHTTPError, transport, HFValidationError, OSError) as error:
        raise WatchError(f"the hub does not say: {error}", where=where, hint="check id, branch and network") from error
    return Arrival(source.location, sha) if sha else None
