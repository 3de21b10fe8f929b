"""A data set or model repository of the Hugging Face hub, at one commit."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sparsemm.errors import FetchError
from sparsemm.fetch import patience
from sparsemm.fetch.blocks import Remote, open_remote, save_remote
from sparsemm.fetch.patience import patiently
from sparsemm.fetch.place import File, Place, by_name
from sparsemm.files import fill_folder, room, sha256_file

CHECKPOINT = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")  # no pickles, no copies for other programs


def hub(repo: str, work: Path, revision: str | None = None) -> Place:
    """The files of a data set; `revision` (a branch, tag or commit; default main) is resolved to a commit.

    HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE count. Requests that fail in passing (429, 5xx, a lost connection) are
    repeated with growing pauses by huggingface_hub.

    Args:
        repo: owner/name.
        work: folder for blocks of files that are being read.
        revision: what to resolve.

    Raises:
        FetchError: if the hub cannot be reached, or the repository is gated, private or missing, or lacks the revision.
    """
    commit, licence, remotes = _listing(repo, revision, "dataset")
    files = (
        File(name, remote.size, partial(open_remote, remote, work), partial(save_remote, remote, work))
        for name, remote in remotes.items()
    )
    return Place(f"hub:{repo}", commit, licence, by_name(files, f"hub:{repo}"))


def checkpoint(repo: str, revision: str | None = None) -> Path:
    """A folder with the verified files of a model, downloaded where huggingface_hub's own cache does not have them.

    huggingface_hub begins a file anew when its process was killed, and does not look at hashes; so it lies beside its
    cache, in $HF_HOME/sparsemm. Without a connection, what either holds has to do.

    Args:
        repo: owner/name.
        revision: branch, tag or commit; default main.

    Raises:
        FetchError: as `hub`, or if a file cannot be fetched or the disk is full.
        CorruptFetch: if a file was wrong twice.
    """
    from filelock import FileLock
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    base = Path(constants.HF_HUB_CACHE).parent / "sparsemm" / repo.replace("/", "--")
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) and (base / revision).is_dir():
        return base / revision
    try:
        commit, _, remotes = _listing(repo, revision, "model")
    except FetchError as unreachable:
        try:
            return Path(snapshot_download(repo, revision=revision, local_files_only=True))
        except (LocalEntryNotFoundError, ValueError):
            raise unreachable from None
    names = [name for name in remotes if "/" not in name and any(fnmatch(name, one) for one in CHECKPOINT)]
    if not any(name.endswith(".safetensors") for name in names):
        hint = "other weights may run code when loaded"
        raise FetchError("holds no safetensors file", where=f"hub:{repo}", hint=hint)

    def fill(folder: Path) -> None:
        for name in names:
            if not (folder / name).is_file():
                _take(repo, commit, remotes[name], name, folder)
        shutil.rmtree(folder / ".blocks", ignore_errors=True)

    with room(str(base)):
        base.mkdir(parents=True, exist_ok=True)
        with FileLock(base / ".lock"):  # the processes of several GPUs come at the same time
            fill_folder(base / commit, fill)
    return base / commit


def _take(repo: str, commit: str, remote: Remote, name: str, folder: Path) -> None:
    """Put a verified file into a folder: a second name of what huggingface_hub has, or a download."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repo, name, revision=commit)
    if isinstance(cached, str) and remote.verify(Path(cached)):
        try:
            os.link(Path(cached).resolve(), folder / name)
            return
        except OSError:  # another file system, or one without links
            pass
    save_remote(remote, folder / ".blocks", folder / name)


def _listing(
    repo: str, revision: str | None, kind: Literal["dataset", "model"]
) -> tuple[str, str | None, dict[str, Remote]]:
    """Commit, licence and files of a repository."""
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.errors import HFValidationError

    where = f"hub:{repo}"
    api = HfApi()

    def listing() -> Any:
        # With files_metadata: sizes, and the hashes that a file must have when it is here.
        return api.repo_info(repo, repo_type=kind, revision=revision, files_metadata=True, timeout=patience.TIMEOUT)

    try:
        found = patiently(listing, _passing)
    except HFValidationError as error:
        raise FetchError(f"not a hub id: {error}", where=where) from error
    except _failures() as error:
        raise explained(error, where, revision) from error
    except (KeyError, TypeError, ValueError) as error:
        what, hint = f"what it says of its files cannot be read: {error!r}", "HF_ENDPOINT must speak the hub's protocol"
        raise FetchError(what, where=where, hint=hint) from error
    commit = str(found.sha)
    remotes = {}
    for one in sorted(found.siblings or (), key=lambda one: one.rfilename):
        if one.size is None:
            what, hint = f"it does not say how large {one.rfilename} is", "HF_ENDPOINT must speak the hub's protocol"
            raise FetchError(what, where=where, hint=hint)
        url = hf_hub_url(repo, one.rfilename, repo_type=kind, revision=commit, endpoint=api.endpoint)
        digest = one.lfs.sha256 if one.lfs else None
        remotes[one.rfilename] = Remote(
            f"{where}@{commit}/{one.rfilename}",
            digest or one.blob_id or "",
            one.size,
            partial(_read, url, f"{where}/{one.rfilename}"),
            partial(_verify, digest, one.blob_id),
        )
    licence = found.card_data.get("license") if found.card_data else None
    if isinstance(licence, list):
        licence = ", ".join(str(one) for one in licence)
    return commit, licence, remotes


def _read(url: str, where: str, start: int, stop: int) -> bytes:
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

    # Without `identity` a server may compress, and a range of compressed bytes is of no use.
    headers = build_hf_headers() | {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    try:
        response = http_backoff("GET", url, headers=headers, timeout=patience.TIMEOUT)
        hf_raise_for_status(response)
    except _failures() as error:
        raise explained(error, where, None) from error
    return response.content if response.status_code == 206 else response.content[start:stop]


def _verify(sha256: str | None, git: str | None, path: Path) -> bool:
    """By the SHA-256 of a large file, or the git blob id of a small one."""
    if sha256:
        return sha256_file(path) == sha256
    if git:
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, lambda: digest).hexdigest() == git
    return True


def _failures() -> tuple[type[BaseException], ...]:
    from huggingface_hub.errors import HfHubHTTPError

    transport: Any = HfHubHTTPError.__bases__[0]  # of the HTTP library this version of the hub's client is built on
    return (HfHubHTTPError, transport, OSError)


def _passing(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OfflineModeIsEnabled) or not isinstance(error, _failures()):
        return False
    return status is None or status == 429 or status >= 500


def explained(error: BaseException, where: str, revision: str | None) -> FetchError:
    """What a failure of huggingface_hub means, in words of what to do.

    Args:
        error: one that it raised, or one of its transport.
        where: what was asked for, for the message.
        revision: that was asked for.
    """
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return FetchError("is gated", where=where, hint="accept its terms on its hub page, then set HF_TOKEN")
    if isinstance(error, errors.RevisionNotFoundError):
        return FetchError(f"has no revision {revision!r}", where=where, hint="name a branch, tag or commit it has")
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return FetchError("does not exist, or is private", where=where, hint="check the spelling, or set HF_TOKEN")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return FetchError("HF_HUB_OFFLINE is set", where=where, hint="unset it, or name a local folder")
    if status == 403:
        return FetchError("this account may not read it", where=where, hint="check HF_TOKEN")
    if status == 404:
        return FetchError("is not there", where=where)
    if status == 429:
        return FetchError("the hub asks to come back later (429)", where=where, hint="wait a while and run it again")
    if status is not None:
        return FetchError(f"the hub answers {status}", where=where, hint="run it again later")
    hint = "check the network and HF_ENDPOINT, then run it again"
    return FetchError(f"the hub cannot be reached: {error}", where=where, hint=hint)
