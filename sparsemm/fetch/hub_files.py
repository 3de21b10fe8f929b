"""Opens a data set of the Hugging Face hub at one commit, and downloads checkpoints."""

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
from sparsemm.fetch import retry
from sparsemm.fetch.blocks import Remote, remote_file, save_remote
from sparsemm.fetch.place import Place, by_name
from sparsemm.files import fill_folder, room, sha256_file

REASONS: dict[int, tuple[str, str | None]] = {  # status of the hub's answer: what is wrong, and what to do
    403: ("this account may not read it", "check HF_TOKEN"),
    404: ("is not there", None),
    429: ("the hub is busy (429)", "wait a while and run it again"),
}
CHECKPOINT = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")  # no pickles, no copies for other programs


def open_hub(repo: str, work: Path, revision: str | None = None) -> Place:
    """Lists the files of a data set at the commit of `revision` (a branch, tag or commit; main if None).

    HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE apply. huggingface_hub repeats requests that fail temporarily (429, 5xx, a
    lost connection), with growing pauses.

    Args:
        repo: owner/name.
        work: folder for the blocks of files that are read.
        revision: branch, tag or commit.

    Raises:
        FetchError: if the hub cannot be reached, or the repository is gated, private or missing, or lacks the revision.
    """
    commit, licence, remotes = _list_files(repo, revision, "dataset")
    files = (remote_file(name, remote, work) for name, remote in remotes.items())
    return Place(f"hub:{repo}", commit, licence, by_name(files, f"hub:{repo}"))


def fetch_checkpoint(repo: str, revision: str | None = None) -> Path:
    """Returns a folder with the verified files of a model; downloads those that huggingface_hub's cache does not hold.

    huggingface_hub restarts a file whose download was killed, and does not check hashes. Therefore the folder is
    beside its cache, in $HF_HOME/sparsemm. Without a connection, the files that either has are used.

    Args:
        repo: owner/name.
        revision: branch, tag or commit; main if None.

    Raises:
        FetchError: as `open_hub`, or if a file cannot be downloaded or the disk is full.
        CorruptFetch: if a file was wrong twice.
    """
    from filelock import FileLock
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    base = Path(constants.HF_HUB_CACHE).parent / "sparsemm" / repo.replace("/", "--")
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) and (base / revision).is_dir():
        return base / revision
    try:
        commit, _, remotes = _list_files(repo, revision, "model")
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
                _link_or_download(repo, commit, remotes[name], name, folder)
        shutil.rmtree(folder / ".blocks", ignore_errors=True)

    with room(str(base)):
        base.mkdir(parents=True, exist_ok=True)
        with FileLock(base / ".lock"):  # the processes of several GPUs arrive at the same time
            fill_folder(base / commit, fill)
    return base / commit


def _link_or_download(repo: str, commit: str, remote: Remote, name: str, folder: Path) -> None:
    """Puts a verified file into a folder: a hard link to huggingface_hub's copy, or a download."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repo, name, revision=commit)
    if isinstance(cached, str) and remote.verify(Path(cached)):
        try:
            os.link(Path(cached).resolve(), folder / name)
            return
        except OSError:  # another file system, or one without links
            pass
    save_remote(remote, folder / ".blocks", folder / name)


def _list_files(
    repo: str, revision: str | None, kind: Literal["dataset", "model"]
) -> tuple[str, str | None, dict[str, Remote]]:
    """Returns commit, licence and files of a repository."""
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.errors import HFValidationError

    where, protocol = f"hub:{repo}", "HF_ENDPOINT must speak the hub's protocol"
    api = HfApi()

    def repo_info() -> Any:
        # files_metadata brings the sizes and hashes of the files.
        return api.repo_info(repo, repo_type=kind, revision=revision, files_metadata=True, timeout=retry.TIMEOUT)

    try:
        info = retry.retry(repo_info, _is_temporary)
    except HFValidationError as error:
        raise FetchError(f"not a hub id: {error}", where=where) from error
    except _failures() as error:
        raise explained(error, where, revision) from error
    except (KeyError, TypeError, ValueError) as error:
        raise FetchError(f"its list of files cannot be read: {error!r}", where=where, hint=protocol) from error
    commit = str(info.sha)
    remotes = {}
    for file in sorted(info.siblings or (), key=lambda file: file.rfilename):
        if file.size is None:
            raise FetchError(f"it does not state the size of {file.rfilename}", where=where, hint=protocol)
        url = hf_hub_url(repo, file.rfilename, repo_type=kind, revision=commit, endpoint=api.endpoint)
        digest = file.lfs.sha256 if file.lfs else None
        remotes[file.rfilename] = Remote(
            f"{where}@{commit}/{file.rfilename}",
            digest or file.blob_id or "",
            file.size,
            partial(_read, url, f"{where}/{file.rfilename}"),
            partial(_verify, digest, file.blob_id),
        )
    licence = info.card_data.get("license") if info.card_data else None
    if isinstance(licence, list):
        licence = ", ".join(map(str, licence))
    return commit, licence, remotes


def _read(url: str, where: str, start: int, stop: int) -> bytes:
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

    # Without `identity` a server may compress, and a range of compressed bytes is useless.
    headers = build_hf_headers() | {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    try:
        response = http_backoff("GET", url, headers=headers, timeout=retry.TIMEOUT)
        hf_raise_for_status(response)
    except _failures() as error:
        raise explained(error, where, None) from error
    return response.content if response.status_code == 206 else response.content[start:stop]


def _verify(sha256: str | None, git: str | None, path: Path) -> bool:
    """Checks the SHA-256 of a large file, or the git blob id of a small one."""
    if sha256:
        return sha256_file(path) == sha256
    if git:
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, lambda: digest).hexdigest() == git
    return True


def _failures() -> tuple[type[BaseException], ...]:
    from huggingface_hub.errors import HfHubHTTPError

    transport: Any = HfHubHTTPError.__bases__[0]  # of the HTTP library that this version of huggingface_hub uses
    return (HfHubHTTPError, transport, OSError)


def _is_temporary(error: BaseException) -> bool:
    """Returns whether the same request may succeed a little later."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OfflineModeIsEnabled) or not isinstance(error, _failures()):
        return False
    return status is None or status == 429 or status >= 500


def explained(error: BaseException, where: str, revision: str | None) -> FetchError:
    """Returns an error that says in plain words why a request of a repository or file failed, and what to do."""
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
    if status is not None:
        what, hint = REASONS.get(status, (f"the hub answers {status}", "run it again later"))
        return FetchError(what, where=where, hint=hint)
    hint = "check the network and HF_ENDPOINT, then run it again"
    return FetchError(f"the hub cannot be reached: {error}", where=where, hint=hint)
