"""A remote file that is downloaded block by block as it is read, and kept on disk until it is no longer needed.

A file beside the data has the CRC-32 of every block that arrived completely. When a process is killed, at worst the
checksum of a block is missing or wrong; then the block is downloaded again.
"""

from __future__ import annotations

import io
import os
import shutil
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.spec import AbstractBufferedFile

from sparsemm.errors import CorruptFetch, FetchError
from sparsemm.fetch.place import File
from sparsemm.files import room

BLOCK = 4 * 2**20  # bytes of one request
LARGE = 2**30  # bytes of a file that is requested in blocks four times as large
WORKERS = 4  # simultaneous requests when a whole file is downloaded


@dataclass(frozen=True)
class Remote:
    """A file of a hub or store."""

    where: str  # address for messages
    identity: str  # text that changes when the content may have changed
    size: int  # size in bytes
    read: Callable[[int, int], bytes]  # returns the bytes [start, stop); it retries temporary failures itself
    verify: Callable[[Path], bool]  # returns whether the whole file at a path has the hash that the source states


class Blocks:
    """The blocks of a remote file in a folder, which may hold those of an earlier process; threads may share them.

    There are `count` blocks of `size` bytes; the last one may be shorter.
    """

    def __init__(self, remote: Remote, folder: Path) -> None:
        self.remote = remote
        self.size = BLOCK if remote.size < LARGE else 4 * BLOCK
        self.count = -(-remote.size // self.size)
        name = sha256(f"{remote.where}\n{remote.identity}\n{remote.size}\n{self.size}".encode()).hexdigest()[:32]
        self.path, self._checksums = folder / f"{name}.data", folder / f"{name}.checksums"
        with room(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            self._files = [os.open(path, os.O_RDWR | os.O_CREAT, 0o644) for path in (self.path, self._checksums)]
        self._lock = threading.Lock()
        self._sound: set[int] = set()  # read or downloaded by this process, so known to match their checksums
        self._verified = False

    def _checksum(self, number: int) -> bytes:
        """Returns the stored checksum; it is empty or zero if the block never arrived."""
        return os.pread(self._files[1], 4, 4 * number)

    def get(self, number: int) -> bytes:
        """Returns the bytes of a block, and downloads them if they are not on disk.

        Raises FetchError if they cannot be downloaded, and CorruptFetch if it was the last block, and the hash of the
        whole file is wrong.
        """
        start, stop = number * self.size, min((number + 1) * self.size, self.remote.size)
        block = os.pread(self._files[0], stop - start, start)
        if len(block) != stop - start or self._checksum(number) != _checksum(block):
            block = self.remote.read(start, stop)
            if len(block) != stop - start:
                what = f"{len(block)} bytes arrived, not {stop - start}"
                raise CorruptFetch(what, where=self.remote.where, hint="run it again")
            with room(self.remote.where):
                os.pwrite(self._files[0], block, start)
                os.pwrite(self._files[1], _checksum(block), 4 * number)
        with self._lock:
            self._sound.add(number)
        self._verify()
        return block

    def _verify(self) -> None:
        """Checks the hash of the whole file once all of its blocks are here."""
        with self._lock:
            if self._verified or len(self._sound) < self.count:
                return
            if not self.remote.verify(self.path):
                os.ftruncate(self._files[1], 0)
                self._sound.clear()
                what = "what arrived is not what the source promised (its hash differs)"
                raise CorruptFetch(what, where=self.remote.where, hint="it was deleted; run it again")
            self._verified = True

    def fill(self) -> None:
        """Downloads every missing block, several at a time.

        Raises FetchError as `get`; and if the disk is too small, before anything is downloaded.
        """
        missing = [number for number in range(self.count) if not any(self._checksum(number))]
        free = shutil.disk_usage(self.path.parent).free
        if len(missing) * self.size > free + self.size:
            needed = f"{len(missing) * self.size / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free"
            raise FetchError(f"the disk is too small: {needed}", where=self.remote.where, hint="free some space")
        with ThreadPoolExecutor(WORKERS) as pool:
            try:
                for _ in pool.map(self.get, range(self.count)):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self._verify()  # an empty file has no blocks

    def move(self, target: Path) -> None:
        """Downloads what is missing, and moves the verified file to its final name; the blocks are gone afterwards."""
        self.fill()
        with room(str(target)):
            os.fsync(self._files[0])  # so that the name does not survive a power cut without its content
            self.close()
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.path, target)
        self._checksums.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the files; the blocks stay on disk."""
        while self._files:
            os.close(self._files.pop())


def _checksum(block: bytes) -> bytes:
    return (zlib.crc32(block) or 1).to_bytes(4, "little")  # zero means that the block never arrived


class BlockFile(AbstractBufferedFile):
    """Blocks as a seekable file for reading; the last two blocks stay in memory."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        options: dict[str, Any] = {"cache_type": "blockcache", "cache_options": {"maxblocks": 2}}
        super().__init__(None, blocks.remote.where, block_size=blocks.size, size=blocks.remote.size, **options)

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._blocks.get(start // self._blocks.size)  # fsspec's block cache reads one block at a time

    def readinto(self, buffer: Any) -> int:
        """Reads at most to the end of a block, so that a buffered reader downloads none ahead."""
        return super().readinto(memoryview(buffer)[: self.blocksize - self.loc % self.blocksize])

    def close(self) -> None:
        """Closes the file; the blocks stay on disk."""
        self._blocks.close()
        super().close()


def remote_file(name: str, remote: Remote, folder: Path) -> File:
    """Returns a remote file as a file of a place, with its blocks in `folder`."""
    return File(name, remote.size, partial(open_remote, remote, folder), partial(save_remote, remote, folder))


def open_remote(remote: Remote, folder: Path) -> BinaryIO:
    """Opens a remote file as a buffered, seekable file whose blocks are kept in `folder`."""
    return io.BufferedReader(BlockFile(Blocks(remote, folder)), buffer_size=2**17)


def save_remote(remote: Remote, folder: Path, target: Path) -> None:
    """Downloads a whole remote file to `target`; its blocks are in `folder`, on the same file system.

    Raises CorruptFetch if the whole file was wrong twice, and FetchError if it cannot be downloaded.
    """
    for attempt in (1, 2):
        blocks = Blocks(remote, folder)
        try:
            blocks.move(target)
            return
        except CorruptFetch:
            if attempt == 2:
                raise
        finally:
            blocks.close()
