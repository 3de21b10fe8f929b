"""`sparsemm models`: adds, lists and removes the models in params.yaml."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from sparsemm.commands import Commands, command, group
from sparsemm.errors import DataError, ModelError, ParamsError, WatchError
from sparsemm.params import WatchParams, load_params
from sparsemm.params.entries import add_entry, remove_entry
from sparsemm.params.models import OVERRIDDEN, without_folder
from sparsemm.params.strict import check_key


def add(commands: Commands) -> None:
    """Adds `models add`, `models list` and `models remove`."""
    models = group(commands, "models", "the models in params.yaml", "list")
    example = "models add data/checkpoints/tiny-qwen2-vl --key second"
    added = command(models, "add", run_add, "detect the family from config.json and write the entry", example)
    added.add_argument("checkpoint", help="folder, hub id, or s3://bucket/prefix (fetched to data/incoming)")
    added.add_argument("--revision", help="hub revision (computed for a local folder)")
    added.add_argument("--key", help="name of the entry (from the checkpoint's name)")
    added.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="dtype of the weights (config.json)")
    added.add_argument("--note", default="", help="shown beside the model in every table")
    command(models, "list", run_list, "key, family, dtype, revision, checkpoint", "models list")
    removed = command(models, "remove", run_remove, "remove an entry; artifacts stay", "models remove second")
    removed.add_argument("key", help="model key")


def run_add(args: argparse.Namespace) -> None:
    """Writes the entry of a checkpoint, with settings for the length of its prompts, and says what it will take.

    A checkpoint on S3 is downloaded first. Raises ModelError if there is no complete checkpoint, or its config is of no
    supported family, and ParamsError if the key or the params file is not valid, or the key is that of another
    checkpoint.
    """
    from sparsemm.models import check_weights, default_key, new_entry
    from sparsemm.suggestions import advice, needs_of, suggested_entry
    from sparsemm.watch.arrival import is_complete

    key, checkpoint = args.key or default_key(args.checkpoint), args.checkpoint
    try:
        check_key(key)  # before anything is downloaded to a folder of that name
    except ValueError as error:
        raise ParamsError(str(error), where=f"{args.params}: models", hint="choose one with --key") from error
    fetched = checkpoint.startswith("s3://")
    if fetched:
        checkpoint = from_s3(checkpoint, key, args.root)
    place = str(args.root / checkpoint) if fetched else checkpoint
    if not Path(place).is_dir() and (Path(place).exists() or without_folder(place)):
        hint = "a checkpoint is a folder with config.json, a hub id (owner/name) or s3://bucket/prefix"
        raise ModelError("no such folder", where=place, hint=hint)
    with contextlib.nullcontext() if Path(place).is_dir() else from_hub(place, args.revision):
        entry = new_entry(place, args.revision, args.dtype, args.note)
    if Path(place).is_dir():
        if not is_complete(Path(place)):
            hint = "every safetensors file named in its index must be present and complete"
            raise ModelError("not a complete checkpoint", where=checkpoint, hint=hint)
        check_weights(place)  # weights on the hub are checked when they are loaded
        with contextlib.suppress(ValueError):  # an absolute path below the repository would hold on this machine alone
            checkpoint = Path(checkpoint).relative_to(args.root.resolve()).as_posix()
    if not fetched:  # what was fetched lies in a folder of its revision
        check_same(args.params, key, checkpoint)
    entry = entry.model_copy(update={"checkpoint": checkpoint})
    lines = []
    try:
        needs = needs_of(entry.model_copy(update={"checkpoint": place}))
        entry = suggested_entry(load_params(args.params), entry, needs)
    except (ModelError, DataError) as error:
        needs = None
        lines.append(f"the length of its prompts is unknown, so check its window and budgets: {error}")
    changed = add_entry(args.params, key, entry)
    print(f"{key}: {entry.family}, {entry.dtype}, revision {entry.revision or '-'}")
    if needs is not None:
        params = load_params(args.params)
        lines += advice(params.of(key), needs)
        own = [name for name in OVERRIDDEN if getattr(params.model(key), name)]
        lines += [f"models.{key} has its own settings for {', '.join(own)}"] if own else []
    print("\n".join(lines))
    print(f"written to {args.params}; `dvc repro` runs its stages" if changed else "nothing changed")


@contextlib.contextmanager
def from_hub(repo: str, revision: str | None) -> Iterator[None]:
    """Prints once that the hub is asked, instead of a line for each attempt of huggingface_hub, and explains failures.

    Raises ModelError if the body raises one; its message then names the hub's reason and what to do.
    """
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import logging  # which sets its level when it is imported

    from sparsemm.fetch.hub_files import explained

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    print(f"asking the hub for {repo}; this is retried for half a minute if it does not answer", file=sys.stderr)
    try:
        yield
    except ModelError as error:
        cause = error.__cause__
        if isinstance(cause, LocalEntryNotFoundError):  # this error only says that the cache does not hold it either
            cause = cause.__cause__ or cause
        elif isinstance(cause, EntryNotFoundError):
            hint = "check that it is a transformers checkpoint"
            raise ModelError("no config.json in the repository", where=repo, hint=hint) from error
        elif not isinstance(cause, HfHubHTTPError):  # not a hub id, or a config.json that is not valid
            raise
        reason = explained(cause, repo, revision)
        raise ModelError(reason.what, where=repo, hint=reason.hint) from error
    finally:
        logging.set_verbosity(level)


def from_s3(location: str, key: str, root: Path) -> str:
    """Downloads a checkpoint to data/incoming and returns its folder.

    Raises ModelError if the location holds no complete checkpoint, or it cannot be downloaded.
    """
    from sparsemm.watch import newest

    try:
        arrival = newest(WatchParams.model_validate({"source": "s3", "location": location}), key, root)
    except WatchError as error:  # its location names an entry under `watch`, which there is not
        raise ModelError(error.what, where=location, hint=error.hint) from error
    if arrival is None:
        hint = "upload config.json and every safetensors shard"
        raise ModelError("no complete checkpoint", where=location, hint=hint)
    return arrival.checkpoint


def check_same(path: Path, key: str, checkpoint: str) -> None:
    """Raises ParamsError if `key` names another checkpoint, whose entry would be lost."""
    known = load_params(path).models.get(key)
    if known is not None and known.checkpoint != checkpoint:
        hint = f"--key NAME adds this one beside it; to replace it, `sparsemm models remove {key}` first"
        raise ParamsError(f"this is the key of {known.checkpoint}", where=f"{path}: models.{key}", hint=hint)


def run_list(args: argparse.Namespace) -> None:
    """Prints one line per model."""
    for key, entry in load_params(args.params).models.items():
        note = f"  ({entry.note})" if entry.note else ""
        print(f"{key}  {entry.family}  {entry.dtype}  {entry.revision or '-'}  {entry.checkpoint}{note}")


def run_remove(args: argparse.Namespace) -> None:
    """Removes an entry from params.yaml."""
    remove_entry(args.params, args.key)
    print(f"removed {args.key} from {args.params}")
