"""A remote file that is fetched block by block, as it is read, and kept on disk until it is no longer needed.

Beside the data lies a journal with one line (number, CRC-32) for every block that arrived whole. A killed process
leaves at worst a block without a line or half a line; both count as not there.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from sparsemm.errors import CorruptFetch, FetchError

BLOCK = 4 * 2**20  # bytes of one request
LARGE = 2**30  # bytes of a file that is asked for in blocks four times as large
WORKERS = 4  # requests at a time while a whole file is fetched


@dataclass(frozen=True)
class Remote:
    """How a transport gives a file.

    Attributes:
        where: address for messages.
        identity: changes when the content may have changed.
        size: in bytes.
        read: the bytes [start, stop); retries what may pass by itself.
        verify: whether the whole file at a path is what the source promised.
    """

    where: str
    identity: str
    size: int
    read: Callable[[int, int], bytes]
    verify: Callable[[Path], bool]


@contextmanager
def room(where: str) -> Iterator[None]:
    """Tell of a full disk as one.

    Raises:
        FetchError: if what happens inside fails for want of space.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            raise FetchError("the disk is full", where=where, hint="free some space and run it again") from error
        raise


class Blocks:
    """The blocks of a remote file that are on disk; several threads may ask for them.

    Args:
        remote: the file.
        folder: that keeps the blocks; it may hold those of an earlier process.

    Attributes:
        size: of a block, in bytes; the last one may be shorter.
    """

    def __init__(self, remote: Remote, folder: Path) -> None:
        self.remote = remote
        self.size = BLOCK if remote.size < LARGE else 4 * BLOCK
        name = sha256(f"{remote.where}\n{remote.identity}\n{remote.size}\n{self.size}".encode()).hexdigest()[:32]
        self._data, self._journal = folder / f"{name}.data", folder / f"{name}.journal"
        with room(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._data, os.O_RDWR | os.O_CREAT, 0o644)
        self._lock = threading.Lock()
        self._checks = self._read_journal()
        self._sound: set[int] = set()  # read or fetched by this process, so known to match their checks
        self._verified = False

    def _read_journal(self) -> dict[int, int]:
        try:
            lines = self._journal.read_text(encoding="ascii").split("\n")[:-1]  # what follows the last \n is torn
        except (FileNotFoundError, UnicodeDecodeError):
            return {}
        checks = {}
        for line in lines:
            number, _, check = line.partition(" ")
            if number.isdecimal() and len(check) == 8 and int(number) < self.count:
                try:
                    checks[int(number)] = int(check, 16)
                except ValueError:
                    continue
        return checks

    @property
    def count(self) -> int:
        """Blocks of the whole file."""
        return -(-self.remote.size // self.size)

    def missing(self) -> list[int]:
        """Numbers of the blocks that are not on disk."""
        return [number for number in range(self.count) if number not in self._checks]

    def get(self, number: int) -> bytes:
        """The bytes of a block, fetched if they are not on disk.

        Raises:
            FetchError: if they cannot be had.
            CorruptFetch: if it was the last block and the whole file is not what the source promised.
        """
        start, stop = number * self.size, min((number + 1) * self.size, self.remote.size)
        if number in self._checks:
            block = os.pread(self._file, stop - start, start)
            if number in self._sound or (len(block) == stop - start and zlib.crc32(block) == self._checks[number]):
                self._sound.add(number)
                self._verify()
                return block
            with self._lock:
                self._checks.pop(number, None)  # torn by a power cut, say
        block = self.remote.read(start, stop)
        if len(block) != stop - start:
            what = f"{len(block)} bytes arrived, not {stop - start}"
            raise CorruptFetch(what, where=self.remote.where, hint="run it again")
        with room(self.remote.where), self._lock:
            os.pwrite(self._file, block, start)
            with open(self._journal, "ab") as journal:
                journal.write(f"{number} {zlib.crc32(block):08x}\n".encode())
            self._checks[number] = zlib.crc32(block)
            self._sound.add(number)
        self._verify()
        return block

    def _verify(self) -> None:
        with self._lock:
            if self._verified or len(self._checks) < self.count:
                return
            if not self.remote.verify(self._data):
                self._journal.unlink(missing_ok=True)
                self._checks.clear()
                what = "what arrived is not what the source promised (its hash differs)"
                raise CorruptFetch(what, where=self.remote.where, hint="it was thrown away; run it again")
            self._verified = True

    def fill(self) -> None:
        """Fetch every block that is not there, several at a time.

        Raises:
            FetchError: as `get`; before anything is fetched if the disk has no room for it.
        """
        missing = self.missing()
        free = shutil.disk_usage(self._data.parent).free
        if len(missing) * self.size > free + self.size:
            needed = f"{len(missing) * self.size / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free"
            raise FetchError(f"the disk is too small: {needed}", where=self.remote.where, hint="free some space")
        with ThreadPoolExecutor(WORKERS) as pool:
            try:
                for _ in pool.map(self.get, missing):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        for number in set(range(self.count)) - self._sound:
            self.get(number)
        self._verify()

    def move(self, target: Path) -> None:
        """Give the whole, verified file its final name; the blocks are gone afterwards."""
        self.fill()
        with room(str(target)):
            os.fsync(self._file)  # a name that survives a power cut has its content
        self.close()
        with room(str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._data, target)
        self._journal.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the data file; the blocks stay on disk."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class BlockFile(io.RawIOBase):
    """Blocks as a seekable file to read."""

    def __init__(self, blocks: Blocks) -> None:
        super().__init__()
        self._blocks, self._at = blocks, 0
        self._last: tuple[int, bytes] = (-1, b"")  # most reads go on where the one before ended

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._blocks.remote.size}[whence]
        if base + offset < 0:
            raise ValueError("seek before the beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer, /) -> int:  # type: ignore[no-untyped-def]
        if self._at >= self._blocks.remote.size:
            return 0
        number, offset = divmod(self._at, self._blocks.size)
        if number != self._last[0]:
            self._last = number, self._blocks.get(number)
        piece = memoryview(self._last[1])[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def close(self) -> None:
        if not self.closed:
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
