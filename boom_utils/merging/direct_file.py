"""A large file written in pieces, in any order and from several threads, past the page cache where the system can.

Pages of a new file are dear: taking them, filling them and waiting until the disk has them costs more than the whole
computation of a merge. Here pieces are gathered in aligned blocks, which the disk takes from where they are.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 1 << 20  # a multiple of every disk's block
WRITERS, WAITING = 2, 16  # threads that write, and blocks that may wait for them


@dataclass
class _Block:
    """A part of the file that is being gathered: its bytes (page-aligned), and how many of them are there."""

    data: NDArray[np.uint8]
    filled: int = 0


class DirectFile:
    """A new file of known size.

    Every byte has to be written once. The blocks that are only partly there are held in memory, so pieces should come
    more or less in order.

    Args:
        path: A file that does not exist.
        size: Its bytes.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._size = size
        self._plain = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._direct = _open_direct(path)
        self._blocks: dict[int, _Block] = {}
        self._spare: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(WRITERS, thread_name_prefix="write")
        self._slots = threading.BoundedSemaphore(WAITING)
        self._failure: Exception | None = None
        try:
            os.ftruncate(self._plain, size)
        except OSError:
            self.close(complete=False)
            raise

    def write(self, start: int, values: NDArray[Any]) -> None:
        """Write the bytes of an array at ``start``; the array may change afterwards.

        Raises:
            OSError: The disk is full; maybe about an earlier piece.
        """
        data = values.reshape(-1).view(np.uint8)
        while data.size:
            if self._failure is not None:
                raise self._failure
            number, offset = divmod(start, BLOCK_BYTES)
            part = data[: BLOCK_BYTES - offset]
            with self._lock:
                block = self._blocks.get(number) or self._new_block(number)
            block.data[offset : offset + part.size] = part
            with self._lock:
                block.filled += part.size
                whole = block.filled == self._length(number)
                if whole:
                    del self._blocks[number]
            if whole:
                self._slots.acquire()
                self._pool.submit(self._put, number, block)
            start, data = start + part.size, data[part.size :]

    def close(self, complete: bool = True) -> None:
        """Close the file; when it is ``complete``, after the disk has all of it.

        Raises:
            OSError: The disk has not taken it.
            ValueError: Bytes are missing.
        """
        if self._plain < 0:
            return
        self._pool.shutdown(wait=True)
        try:
            if complete and self._failure is not None:
                raise self._failure
            if complete and self._blocks:
                raise ValueError(f"{len(self._blocks)} blocks of a file were not written whole")
            if complete:
                os.fsync(self._plain)
        finally:
            for number in (self._plain, self._direct):
                if number is not None:
                    os.close(number)
            self._plain, self._direct = -1, None

    def _length(self, number: int) -> int:
        return min(BLOCK_BYTES, self._size - number * BLOCK_BYTES)

    def _new_block(self, number: int) -> _Block:
        # An anonymous mapping begins at a page, which direct writing needs.
        data = self._spare.pop() if self._spare else np.frombuffer(mmap.mmap(-1, BLOCK_BYTES), dtype=np.uint8)
        block = self._blocks[number] = _Block(data)
        return block

    def _put(self, number: int, block: _Block) -> None:
        try:
            if self._failure is None:
                self._put_bytes(number * BLOCK_BYTES, memoryview(block.data[: self._length(number)].data))
        except Exception as error:
            self._failure = self._failure or error
        finally:
            with self._lock:
                self._spare.append(block.data)
            self._slots.release()

    def _put_bytes(self, place: int, view: memoryview) -> None:
        while view:
            direct = self._direct if len(view) == BLOCK_BYTES else None  # the end of the file is no whole block
            try:
                count = os.pwrite(self._plain if direct is None else direct, view, place)
            except OSError as error:
                if direct is None or error.errno != errno.EINVAL:
                    raise
                count = os.pwrite(self._plain, view, place)  # this file system has other ideas of alignment
            view, place = view[count:], place + count


def _open_direct(path: Path) -> int | None:
    """The file opened for writing past the page cache; None where that is not possible (macOS, files in memory)."""
    flag = getattr(os, "O_DIRECT", None)
    if flag is None:
        return None
    try:
        return os.open(path, os.O_WRONLY | flag)
    except OSError:
        return None
