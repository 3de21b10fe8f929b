"""Opens a prefix on S3, or on any store that speaks its protocol (AWS_ENDPOINT_URL), as a place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sparsemm.errors import CorruptFetch, FetchError
from sparsemm.fetch import retry
from sparsemm.fetch.blocks import Remote, remote_file
from sparsemm.fetch.place import Place, by_name, check_revision


def open_s3(location: str, work: Path, revision: str | None = None) -> Place:
    """Lists the objects under s3://bucket/prefix; the revision is a hash of their names, sizes and etags.

    Endpoint, region and credentials come from the environment or boto3's own files. Requests that fail temporarily are
    repeated with growing pauses.

    Args:
        location: s3://bucket/prefix.
        work: folder for the blocks of files that are read.
        revision: the revision that it must hold; None accepts any.

    Raises:
        FetchError: if the store cannot be reached or refuses, or it holds another revision.
    """
    bucket, prefix = split_location(location)
    client = connect(location)

    def list_objects() -> list[dict[str, Any]]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [entry for page in pages for entry in page.get("Contents", ()) if not entry["Key"].endswith("/")]

    with _explained(location):
        objects = retry.retry(list_objects, _is_temporary)
    objects.sort(key=lambda entry: str(entry["Key"]))
    text = "".join(f"{entry['Key']} {entry['Size']} {entry['ETag']}\n" for entry in objects)
    content = hashlib.sha256(text.encode()).hexdigest()[:16]
    check_revision(content, revision, location)
    files = []
    for entry in objects:
        key, etag = entry["Key"], entry["ETag"]
        read, verify = partial(_read, client, bucket, key, etag), partial(_verify, client, bucket, key, etag)
        remote = Remote(f"s3://{bucket}/{key}", etag, entry["Size"], read, verify)
        files.append(remote_file(key.removeprefix(prefix), remote, work))
    return Place(location.rstrip("/"), content, None, by_name(files, location))


def split_location(location: str) -> tuple[str, str]:
    """Returns (bucket, prefix) of s3://bucket/prefix; the prefix ends in a slash unless it is empty.

    Raises FetchError if it is no such address.
    """
    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    if not location.startswith("s3://") or not bucket:
        raise FetchError("not s3://bucket/prefix", where=location)
    return bucket, prefix.rstrip("/") + "/" if prefix.strip("/") else ""


def connect(location: str, seconds: float | None = None, endpoint: str | None = None) -> Any:
    """Returns a boto3 client whose requests time out after `seconds` (`retry.TIMEOUT`) without a byte.

    Raises FetchError if boto3 is not installed, or its settings are invalid; the message names `location`.
    """
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        hint = "`pip install '.[s3]'` in a clone of SparseMM"
        raise FetchError("boto3 is not installed", where=location, hint=hint) from error
    seconds = seconds or retry.TIMEOUT
    timeouts: dict[str, Any] = {"connect_timeout": seconds, "read_timeout": seconds}
    once: Any = {"mode": "standard", "total_max_attempts": 1}  # `retry` also repeats requests whose body breaks off
    with _explained(location):
        config = Config(retries=once, max_pool_connections=16, **timeouts)
        return boto3.Session().client("s3", endpoint_url=endpoint, config=config)


def check_store(location: str, seconds: float, endpoint: str | None = None) -> None:
    """Checks with one request that a store lists the objects under s3://bucket/prefix.

    Raises FetchError if it does not.
    """
    bucket, prefix = split_location(location)
    client = connect(location, seconds, endpoint)
    with _explained(location):
        client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)


def _read(client: Any, bucket: str, key: str, etag: str, start: int, stop: int) -> bytes:
    """Returns the bytes [start, stop) of an object that still has this etag."""

    def body() -> bytes:
        answer = client.get_object(Bucket=bucket, Key=key, IfMatch=etag, Range=f"bytes={start}-{stop - 1}")
        data: bytes = answer["Body"].read()
        if len(data) != stop - start:
            raise OSError(f"{len(data)} bytes arrived, not {stop - start}")
        return data

    with _explained(f"s3://{bucket}/{key}"):
        return retry.retry(body, _is_temporary)


def _is_temporary(error: Exception) -> bool:
    """Returns whether the same request may succeed a little later: cut off, damaged, too slow, 429, 5xx."""
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
    temporary = HTTPClientError | EndpointConnectionError | IncompleteReadError | FlexibleChecksumError | OSError
    return isinstance(error, temporary)


def _verify(client: Any, bucket: str, key: str, etag: str, path: Path) -> bool:
    """Checks the etag: MD5 of the content, or of the MD5s of its parts.

    An etag that is neither (encrypted with a KMS or customer key, parts of unequal size, directory buckets) cannot be
    checked; then size and conditional requests have to do.
    """
    digest, _, parts = etag.strip('"').partition("-")
    if len(digest) != 32 or bucket.endswith("--x-s3"):
        return True
    with open(path, "rb") as handle:
        if not parts and hashlib.file_digest(handle, _md5).hexdigest() == digest:
            return True
    options = {"PartNumber": 1} if parts else {}
    with _explained(f"s3://{bucket}/{key}"):
        head = retry.retry(lambda: client.head_object(Bucket=bucket, Key=key, **options), _is_temporary)
    if head.get("SSECustomerAlgorithm") or "kms" in head.get("ServerSideEncryption", ""):
        return True
    if not parts:
        return False
    part, size = head["ContentLength"], path.stat().st_size
    if part <= 0 or -(-size // part) != int(parts):  # the store does not state it, or the parts are unequal
        return True
    whole = _md5()
    with open(path, "rb") as handle:
        while piece := handle.read(part):
            whole.update(_md5(piece).digest())
    return bool(whole.hexdigest() == digest)


def _md5(data: bytes = b"") -> Any:
    return hashlib.md5(data, usedforsecurity=False)


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Raises errors of boto3 as a `FetchError` that says in plain words why a request failed, and what to do."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError, OSError, ValueError) as error:
        raise _fetch_error(error, where) from error


def _fetch_error(error: BaseException, where: str) -> FetchError:
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
