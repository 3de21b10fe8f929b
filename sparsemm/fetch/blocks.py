"""A remote file that is fetched block by block, as it is read, and kept on disk until it is no longer needed.

Beside the data lies a file with the CRC-32 of every block that arrived whole. A killed process leaves at worst a block
whose checksum is missing or wrong; it is fetched again.
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
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.spec import AbstractBufferedFile

from sparsemm.errors import CorruptFetch, FetchError
from sparsemm.files import room

BLOCK = 4 * 2**20  # bytes of one request
LARGE = 2**30  # bytes of a file that is asked for in blocks four times as large
WORKERS = 4  # requests at a time while a whole file is fetched


@dataclass(frozen=True)
class Remote:
    """How a transport reads a file.

    Attributes:
        where: address for messages.
        identity: changes when the content may have changed.
        size: in bytes.
        read: returns the bytes [start, stop), and retries what may pass by itself.
        verify: whether the whole file at a path is what the source promised.
    """

    where: str
    identity: str
    size: int
    read: Callable[[int, int], bytes]
    verify: Callable[[Path], bool]


class Blocks:
    """The blocks of a remote file that are on disk; several threads may ask for them.

    Args:
        remote: the file.
        folder: that keeps the blocks; it may hold those of an earlier process.

    Attributes:
        size: of a block, in bytes; the last one may be shorter.
        count: blocks of the whole file.
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
        self._sound: set[int] = set()  # read or fetched by this process, so known to match their checksums
        self._verified = False

    def _checksum(self, number: int) -> bytes:
        """The stored checksum; empty or zero where the block never arrived."""
        return os.pread(self._files[1], 4, 4 * number)

    def get(self, number: int) -> bytes:
        """The bytes of a block, fetched if they are not on disk.

        Raises:
            FetchError: if they cannot be had.
            CorruptFetch: if it was the last block and the whole file is not what the source promised.
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
        """Compare the whole file with what the source promised, once all of its blocks are here."""
        with self._lock:
            if self._verified or len(self._sound) < self.count:
                return
            if not self.remote.verify(self.path):
                os.ftruncate(self._files[1], 0)
                self._sound.clear()
                what = "what arrived is not what the source promised (its hash differs)"
                raise CorruptFetch(what, where=self.remote.where, hint="it was thrown away; run it again")
            self._verified = True

    def fill(self) -> None:
        """Fetch every block that is not there, several at a time.

        Raises:
            FetchError: as `get`; before anything is fetched if the disk has no room for it.
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
        """Give the whole, verified file its final name; the blocks are gone afterwards."""
        self.fill()
        with room(str(target)):
            os.fsync(self._files[0])  # a name that survives a power cut has its content
            self.close()
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.path, target)
        self._checksums.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files; the blocks stay on disk."""
        while self._files:
            os.close(self._files.pop())


def _checksum(block: bytes) -> bytes:
    return (zlib.crc32(block) or 1).to_bytes(4, "little")  # zero is for what never arrived


class BlockFile(AbstractBufferedFile):
    """Blocks as a seekable file to read; the last two stay in memory."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        options: dict[str, Any] = {"cache_type": "blockcache", "cache_options": {"maxblocks": 2}}
        super().__init__(None, blocks.remote.where, block_size=blocks.size, size=blocks.remote.size, **options)

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._blocks.get(start // self._blocks.size)  # fsspec's block cache asks for one block at a time

    def readinto(self, buffer: Any) -> int:
        """As of any file, but no further than the end of a block: a buffered reader fetches none ahead."""
        return super().readinto(memoryview(buffer)[: self.blocksize - self.loc % self.blocksize])

    def close(self) -> None:
        """Close the file; the blocks stay on disk."""
        self._blocks.close()
        super().close()


def open_remote(remote: Remote, folder: Path) -> BinaryIO:
    """A remote file as a buffered, seekable file whose blocks are kept in `folder`."""
    return io.BufferedReader(BlockFile(Blocks(remote, folder)), buffer_size=2**17)


def save_remote(remote: Remote, folder: Path, target: Path) -> None:
    """Fetch a whole remote file to `target`, by way of blocks in `folder` on the same file system.

    Raises:
        CorruptFetch: if the whole file was wrong twice.
        FetchError: if it cannot be had.
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
