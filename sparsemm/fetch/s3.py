"""Files under a prefix on S3, or on any store that speaks its protocol (AWS_ENDPOINT_URL)."""

from __future__ import annotations

import hashlib
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

from sparsemm.errors import FetchError
from sparsemm.fetch.blocks import Remote, open_remote, save_remote
from sparsemm.fetch.place import File, Place

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 6
PAUSE = 0.5  # seconds before the second attempt; doubled before each later one


def s3(location: str, work: Path, revision: str | None = None) -> Place:
    """The objects under s3://bucket/prefix; the revision is a hash of their names, sizes and etags.

    Endpoint, region and credentials come from the environment or boto3's own files. Requests that fail in passing are
    repeated with growing pauses.

    Args:
        location: s3://bucket/prefix.
        work: folder for blocks of files that are being read.
        revision: what it must hold.

    Raises:
        FetchError: if the store cannot be asked or refuses, nothing is there, or it holds another revision.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    if not location.startswith("s3://") or not bucket:
        raise FetchError("not s3://bucket/prefix", where=location)
    prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
    options = {"retries": {"mode": "standard", "max_attempts": ATTEMPTS}, "read_timeout": TIMEOUT}
    client = boto3.client("s3", config=Config(connect_timeout=TIMEOUT, max_pool_connections=16, **options))
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        objects = [one for page in pages for one in page.get("Contents", ()) if not one["Key"].endswith("/")]
    except (BotoCoreError, ClientError, OSError, ValueError) as error:
        raise _explained(error, location) from error
    if not objects:
        raise FetchError("nothing is there", where=location, hint="check bucket and prefix")
    objects.sort(key=lambda one: str(one["Key"]))
    text = "".join(f"{one['Key']} {one['Size']} {one['ETag']}\n" for one in objects)
    held = hashlib.sha256(text.encode()).hexdigest()[:16]
    if revision not in (None, held):
        what = f"holds revision {held}, params.yaml names {revision}"
        raise FetchError(what, where=location, hint="correct it if the change is wanted")
    files = {}
    for one in objects:
        name = one["Key"].removeprefix(prefix)
        remote = Remote(
            f"s3://{bucket}/{one['Key']}",
            one["ETag"],
            one["Size"],
            partial(_read, client, bucket, one["Key"], one["ETag"]),
            partial(_verify, client, bucket, one["Key"], one["ETag"]),
        )
        files[name] = File(name, remote.size, partial(open_remote, remote, work), partial(save_remote, remote, work))
    return Place(location.rstrip("/"), held, None, files)


def _read(client: Any, bucket: str, key: str, etag: str, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of an object that still has this etag.

    botocore repeats a request that fails, but not one whose body breaks off.
    """
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    where = f"s3://{bucket}/{key}"
    for attempt in range(ATTEMPTS):
        try:
            answer = client.get_object(Bucket=bucket, Key=key, IfMatch=etag, Range=f"bytes={start}-{stop - 1}")
            body: bytes = answer["Body"].read()
            if len(body) == stop - start:
                return body
            failure: Exception = OSError(f"{len(body)} bytes arrived, not {stop - start}")
        except ClientError as error:
            raise _explained(error, where) from error
        except (HTTPClientError, OSError) as error:  # cut off, too slow, connection lost
            failure = error
        except BotoCoreError as error:
            raise _explained(error, where) from error
        if attempt + 1 < ATTEMPTS:
            time.sleep(PAUSE * 2**attempt * random.uniform(0.5, 1.0))  # not all workers at the same moment
    raise _explained(failure, where) from failure


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
        head = client.head_object(Bucket=bucket, Key=key, IfMatch=etag, **({"PartNumber": 1} if parts else {}))
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
    from botocore.exceptions import NoCredentialsError, PartialCredentialsError

    answer = getattr(error, "response", {})
    code = str(answer.get("Error", {}).get("Code", ""))
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
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
