"""A prefix on S3, or on any store that speaks its protocol (AWS_ENDPOINT_URL)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from sparsemm.errors import WatchError
from sparsemm.params import WatchParams
from sparsemm.watch.arrival import Arrival
from sparsemm.watch.incoming import fetched, inside


def newest(source: WatchParams, key: str, root: Path) -> Arrival | None:
    """The checkpoint under s3://bucket/prefix, downloaded; its revision is a hash of names, sizes and etags.

    Endpoint, region and credentials come from the environment or boto3's own files. A half-uploaded checkpoint is
    not complete, and is left for the next look.

    Raises:
        WatchError: if the store cannot be asked, a file cannot be fetched, or `location` is not s3://bucket/prefix.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    where = f"watch.{key}: {source.location}"
    bucket, _, prefix = source.location.removeprefix("s3://").partition("/")
    if not source.location.startswith("s3://") or not bucket:
        raise WatchError("not s3://bucket/prefix", where=where)
    prefix = prefix.rstrip("/") + "/" if prefix else ""
    client = boto3.client("s3", config=Config(retries={"mode": "standard", "max_attempts": 5}))
    try:
        objects = _objects(client, bucket, prefix)
        if not objects:
            return None
        text = "".join(f"{one['Key']} {one['Size']} {one['ETag']}\n" for one in objects)

        def fetch(folder: Path) -> None:
            for one in objects:
                path = inside(folder, one["Key"].removeprefix(prefix), where)
                client.download_file(bucket, one["Key"], str(path))

        return fetched(root, key, hashlib.sha256(text.encode()).hexdigest()[:16], fetch)
    except (BotoCoreError, ClientError, OSError) as error:
        hint = "check AWS_ENDPOINT_URL, the credentials and the bucket"
        raise WatchError(f"the store does not answer: {error}", where=where, hint=hint) from error


def _objects(client: Any, bucket: str, prefix: str) -> list[dict[str, Any]]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    found = [one for page in pages for one in page.get("Contents", ()) if not one["Key"].endswith("/")]
    return sorted(found, key=lambda one: str(one["Key"]))
