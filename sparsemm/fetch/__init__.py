"""Files of the hub, of S3 or of a folder: fetched only as far as they are read, resumable, verified."""

from sparsemm.fetch.hub import checkpoint, hub
from sparsemm.fetch.local import local
from sparsemm.fetch.place import File, Place
from sparsemm.fetch.s3 import s3

__all__ = ["File", "Place", "checkpoint", "hub", "local", "s3"]
