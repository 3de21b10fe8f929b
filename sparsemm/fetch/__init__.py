"""Files of the Hugging Face hub, of S3 or of a folder: downloaded only as far as they are read, resumable, verified."""

from sparsemm.fetch.hub_files import fetch_checkpoint, open_hub
from sparsemm.fetch.local_files import open_local
from sparsemm.fetch.place import File, Place
from sparsemm.fetch.s3_files import open_s3

__all__ = ["File", "Place", "fetch_checkpoint", "open_hub", "open_local", "open_s3"]
