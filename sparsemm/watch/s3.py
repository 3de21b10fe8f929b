"""Watches a prefix on S3, or on any store with the same protocol (AWS_ENDPOINT_URL)."""

from __future__ import annotations

import shutil
from pathlib import Path

from sparsemm import fetch
from sparsemm.errors import FetchError, WatchError
from sparsemm.params import WatchParams
from sparsemm.watch.arrival import Arrival
from sparsemm.watch.incoming import fetched, inside


def newest(source: WatchParams, key: str, root: Path) -> Arrival | None:
    """Downloads the checkpoint under s3://bucket/prefix. Its revision is a hash of names, sizes and etags.

    Endpoint, region and credentials come from the environment or boto3's own files. A checkpoint that is still being
    uploaded is incomplete and is not returned yet. A download that was stopped is resumed.

    Raises:
        WatchError: if the store cannot be reached, a file cannot be downloaded, or `location` is not
            s3://bucket/prefix.
    """
    where = f"watch.{key}: {source.location}"
    folder = root / "data" / "incoming" / key
    try:
        place = fetch.open_s3(source.location, folder / ".blocks")
        if not place.files:
            return None
        for name in place.files:
            inside(folder, name, where)

        def save(partial: Path) -> None:
            for name, file in place.files.items():
                path = inside(partial, name, where)
                if not path.is_file() or path.stat().st_size != file.size:  # files of an earlier try were verified
                    file.save(path)

        arrival = fetched(root, key, place.revision, save)
    except (FetchError, OSError) as error:
        what, hint = (error.what, error.hint) if isinstance(error, FetchError) else (str(error), None)
        raise WatchError(what, where=where, hint=hint) from error
    shutil.rmtree(folder / ".blocks", ignore_errors=True)
    return arrival
