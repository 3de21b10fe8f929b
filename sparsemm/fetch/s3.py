"""Files under a prefix on S3, or on any store that speaks its protocol (AWS_ENDPOINT_URL)."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

from sparsemm.errors import CorruptFetch, FetchError
from sparsemm.fetch import patience
from sparsemm.fetch.blocks import Remote, open_remote, save_remote
from sparsemm.fetch.patience import patiently
from sparsemm.fetch.place import File, Place, by_name


def s3(location: str, work: Path, revision: str | None = None) -> Place:
    """The objects under s3://bucket/prefix; the revision is a hash of their names, sizes and etags.

    Endpoint, region and credentials come from the environment or boto3's own files. Requests that fail in passing are
    repeated with growing pauses.

    Args:
        location: s3://bucket/prefix.
        work: folder for blocks of files that are being read.
        revision: what it must hold.

    Raises:
        FetchError: if the store cannot be asked or refuses, or it holds another revision.
    """
    bucket, prefix = split(location)
    client = connect(location)

    def listing() -> list[dict[str, Any]]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [one for page in pages for one in page.get("Contents", ()) if not one["Key"].endswith("/")]

    from botocore.exceptions import BotoCoreError, ClientError

    try:
        objects = patiently(listing, _passing)
    except (BotoCoreError, ClientError, OSError, ValueError) as error:
        raise _explained(error, location) from error
    objects.sort(key=lambda one: str(one["Key"]))
    text = "".join(f"{one['Key']} {one['Size']} {one['ETag']}\n" for one in objects)
    held = hashlib.sha256(text.encode()).hexdigest()[:16]
    if revision not in (None, held):
        what = f"holds revision {held}, params.yaml names {revision}"
        raise FetchError(what, where=location, hint="correct it if the change is wanted")
    files = []
    for one in objects:
        name = one["Key"].removeprefix(prefix)
        remote = Remote(
            f"s3://{bucket}/{one['Key']}",
            one["ETag"],
            one["Size"],
            partial(_read, client, bucket, one["Key"], one["ETag"]),
            partial(_verify, client, bucket, one["Key"], one["ETag"]),
        )
        files.append(File(name, remote.size, partial(open_remote, remote, work), partial(save_remote, remote, work)))
    return Place(location.rstrip("/"), held, None, by_name(files, location))


def split(location: str) -> tuple[str, str]:
    """(bucket, prefix) of s3://bucket/prefix; the prefix ends in a slash unless it is empty.

    Raises:
        FetchError: if it is no such address.
    """
    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    if not location.startswith("s3://") or not bucket:
        raise FetchError("not s3://bucket/prefix", where=location)
    return bucket, prefix.rstrip("/") + "/" if prefix.strip("/") else ""


def connect(location: str, seconds: float | None = None, endpoint: str | None = None) -> Any:
    """A boto3 client that gives up after `seconds` without a byte (`patience.TIMEOUT`), for requests about `location`.

    Raises:
        FetchError: if boto3 is not installed, or its settings make no sense.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise FetchError("boto3 is not installed", where=location, hint="pip install boto3") from error
    seconds = seconds or patience.TIMEOUT
    waits: dict[str, Any] = {"connect_timeout": seconds, "read_timeout": seconds}
    retries: Any = {"mode": "standard", "total_max_attempts": 1}  # `patiently` also knows of bodies that break off
    config = Config(retries=retries, max_pool_connections=16, **waits)
    try:
        return boto3.Session().client("s3", endpoint_url=endpoint, config=config)
    except (BotoCoreError, ValueError) as error:
        raise _explained(error, location) from error


def ask(location: str, seconds: float, endpoint: str | None = None) -> None:
    """Ask once whether a store lists what is under s3://bucket/prefix.

    Raises:
        FetchError: if it does not.
    """
    bucket, prefix = split(location)
    client = connect(location, seconds, endpoint)
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    except (BotoCoreError, ClientError, OSError, ValueError) as error:
        raise _explained(error, location) from error


def _read(client: Any, bucket: str, key: str, etag: str, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of an object that still has this etag."""
    from botocore.exceptions import BotoCoreError, ClientError

    def body() -> bytes:
        answer = client.get_object(Bucket=bucket, Key=key, IfMatch=etag, Range=f"bytes={start}-{stop - 1}")
        data: bytes = answer["Body"].read()
        if len(data) != stop - start:
            raise OSError(f"{len(data)} bytes arrived, not {stop - start}")
        return data

    try:
        return patiently(body, _passing)
    except (BotoCoreError, ClientError, OSError) as error:
        raise _explained(error, f"s3://{bucket}/{key}") from error


def _passing(error: Exception) -> bool:
    """Whether the same request may succeed a little later: no answer, cut off, damaged, too slow, 429, 5xx."""
    from botocore.exceptions import (
        ClientError,
        EndpointConnectionError,
        FlexibleChecksumError,
        HTTPClientError,
        IncompleteReadError,
    )

    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = error.response.get("Error", {}).get("Code")
        return status == 429 or status >= 500 or code in ("RequestTimeout", "Throttling", "SlowDown")
    passing = HTTPClientError | EndpointConnectionError | IncompleteReadError | FlexibleChecksumError | OSError
    return isinstance(error, passing)


def _verify(client: Any, bucket: str, key: str, etag: str, path: Path) -> bool:
    """By the etag: MD5 of the content, or of the MD5s of its parts.

    An etag that is neither (encrypted with a KMS or customer key, parts of unequal size, directory buckets) says
    nothing, and size and conditional requests have to do.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    digest, _, parts = etag.strip('"').partition("-")
    if len(digest) != 32 or bucket.endswith("--x-s3"):
        return True
    with open(path, "rb") as handle:
        if not parts and hashlib.file_digest(handle, _md5).hexdigest() == digest:
            return True
    try:
        options = {"PartNumber": 1} if parts else {}
        head = patiently(lambda: client.head_object(Bucket=bucket, Key=key, **options), _passing)
    except (BotoCoreError, ClientError, OSError) as error:
        raise _explained(error, f"s3://{bucket}/{key}") from error
    if head.get("SSECustomerAlgorithm") or "kms" in head.get("ServerSideEncryption", ""):
        return True
    if not parts:
        return False
    part, size = head["ContentLength"], path.stat().st_size
    if part <= 0 or -(-size // part) != int(parts):  # a store that does not say, or unequal parts
        return True
    whole = _md5()
    with open(path, "rb") as handle:
        while piece := handle.read(part):
            whole.update(_md5(piece).digest())
    return whole.hexdigest() == digest


def _md5(data: bytes = b"") -> Any:
    return hashlib.md5(data, usedforsecurity=False)


def _explained(error: BaseException, where: str) -> FetchError:
    from botocore.exceptions import FlexibleChecksumError, NoCredentialsError, PartialCredentialsError

    answer = getattr(error, "response", None) or {}
    code = str(answer.get("Error", {}).get("Code", ""))
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if isinstance(error, FlexibleChecksumError):
        return CorruptFetch("what arrives is not what the store promised", where=where, hint="run it again")
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return FetchError("no credentials", where=where, hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if code in ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"):
        return FetchError(f"the credentials have expired ({code})", where=where, hint="renew them and run it again")
    if code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch") or status in (401, 403):
        hint = "check the credentials and what they may read"
        return FetchError(f"the store refuses ({code or status})", where=where, hint=hint)
    if code in ("NoSuchBucket", "NoSuchKey") or status == 404:
        return FetchError(f"is not there ({code or status})", where=where, hint="check bucket and prefix")
    if code == "PreconditionFailed" or status == 412:
        return FetchError("changed while it was read", where=where, hint="run it again")
    if code:
        return FetchError(f"the store answers {code}", where=where, hint="run it again later")
    hint = "check the network and AWS_ENDPOINT_URL, then run it again"
    return FetchError(f"the store cannot be reached: {error}", where=where, hint=hint)
