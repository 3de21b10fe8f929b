"""`sparsemm models`: the models in params.yaml."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from sparsemm.commands import Commands, group
from sparsemm.errors import ModelError, ParamsError, WatchError
from sparsemm.params import WatchParams, load_params
from sparsemm.params.base import check_key
from sparsemm.params.entries import add_entry, remove_entry
from sparsemm.params.models import without_folder


def add(commands: Commands) -> None:
    """`models add`, `models list` and `models remove`."""
    models = group(commands, "models", "the models in params.yaml", "list")
    added = models.add_parser(
        "add",
        help="detect the family from config.json and write the entry",
        epilog="example: sparsemm models add data/checkpoints/tiny-qwen2-vl --key second",
    )
    added.add_argument("checkpoint", help="folder, hub id, or s3://bucket/prefix (fetched to data/incoming)")
    added.add_argument("--revision", help="hub revision (a local folder's is computed)")
    added.add_argument("--key", help="name of the entry (from the checkpoint's name)")
    added.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: what config.json says")
    added.add_argument("--note", default="", help="shown beside the model in every table")
    added.set_defaults(run=run_add)
    listed = models.add_parser(
        "list", help="key, family, dtype, revision, checkpoint", epilog="example: sparsemm models list"
    )
    listed.set_defaults(run=run_list)
    removed = models.add_parser(
        "remove", help="remove an entry; artifacts stay", epilog="example: sparsemm models remove second"
    )
    removed.add_argument("key", help="model key")
    removed.set_defaults(run=run_remove)


def run_add(given: argparse.Namespace) -> None:
    """Write the entry of a checkpoint, fetched first where it lies on S3.

    Raises:
        ModelError: if there is no complete checkpoint, or its config does not say what it is.
        ParamsError: if the key or the params file is not valid.
    """
    from sparsemm.models import check_weights, default_key, new_entry
    from sparsemm.watch.arrival import is_complete

    key, checkpoint = given.key or default_key(given.checkpoint), given.checkpoint
    try:
        check_key(key)  # before anything is fetched into a folder of that name
    except ValueError as error:
        raise ParamsError(str(error), where=f"{given.params}: models", hint="choose one with --key") from error
    fetched = checkpoint.startswith("s3://")
    if fetched:
        checkpoint = from_s3(checkpoint, key, given.root)
    place = str(given.root / checkpoint) if fetched else checkpoint
    if not Path(place).is_dir() and (Path(place).exists() or without_folder(place)):
        hint = "a checkpoint is a folder with config.json, a hub id (owner/name) or s3://bucket/prefix"
        raise ModelError("no such folder", where=place, hint=hint)
    with contextlib.nullcontext() if Path(place).is_dir() else from_hub(place, given.revision):
        entry = new_entry(place, given.revision, given.dtype, given.note)
    if Path(place).is_dir():
        if not is_complete(Path(place)):
            hint = "every safetensors file that its index names must be there, whole"
            raise ModelError("not a complete checkpoint", where=checkpoint, hint=hint)
        check_weights(place)  # those of the hub are checked when they are loaded
    entry = entry.model_copy(update={"checkpoint": checkpoint})
    changed = add_entry(given.params, key, entry)
    print(f"{key}: {entry.family}, {entry.dtype}, revision {entry.revision or '-'}")
    print(f"written to {given.params}; `dvc repro` runs its stages" if changed else "nothing changed")


@contextlib.contextmanager
def from_hub(repo: str, revision: str | None) -> Iterator[None]:
    """Say once that the hub is asked, instead of a line for each of huggingface_hub's attempts, and why it failed.

    Raises:
        ModelError: as what happens inside, in words of what to do.
    """
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import logging  # which sets its level when it is imported

    from sparsemm.fetch.hub import explained

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    print(f"asking the hub for {repo}; without an answer it is asked again for half a minute", file=sys.stderr)
    try:
        yield
    except ModelError as error:
        cause = error.__cause__
        if isinstance(cause, LocalEntryNotFoundError):  # which says no more than that it is not in the cache either
            cause = cause.__cause__ or cause
        elif isinstance(cause, EntryNotFoundError):
            raise ModelError("holds no config.json", where=repo, hint="is it a checkpoint of transformers?") from error
        elif not isinstance(cause, HfHubHTTPError):  # no hub id, or a config that came and is none
            raise
        told = explained(cause, repo, revision)
        raise ModelError(told.what, where=repo, hint=told.hint) from error
    finally:
        logging.set_verbosity(level)


def from_s3(location: str, key: str, root: Path) -> str:
    """Fetch a checkpoint to data/incoming, and return its folder.

    Raises:
        ModelError: if no complete checkpoint is there, or it cannot be fetched.
    """
    from sparsemm.watch import newest

    try:
        arrival = newest(WatchParams.model_validate({"source": "s3", "location": location}), key, root)
    except WatchError as error:  # which speaks of an entry under `watch`
        raise ModelError(error.what, where=location, hint=error.hint) from error
    if arrival is None:
        hint = "config.json and every safetensors shard must be there"
        raise ModelError("no complete checkpoint", where=location, hint=hint)
    return arrival.checkpoint


def run_list(given: argparse.Namespace) -> None:
    """One line per model."""
    for key, entry in load_params(given.params).models.items():
        note = f"  ({entry.note})" if entry.note else ""
        print(f"{key}  {entry.family}  {entry.dtype}  {entry.revision or '-'}  {entry.checkpoint}{note}")


def run_remove(given: argparse.Namespace) -> None:
    """Remove an entry."""
    remove_entry(given.params, given.key)
    print(f"removed {given.key} from {given.params}")
