"""Arrays in files, in memory or from a random generator, read forwards in blocks of rows.

The contract: an `Array` knows its shape and dtype before a byte of its data is read. `reading` opens it for
one pass; the function that it gives returns the rows asked for, at indices that only increase. Files are read
through in blocks, never as a whole, with one exception: Fortran order in two or more dimensions. A zip member
is read to its end even when its last rows are not wanted, so that its checksum is compared.
"""

import contextlib
import lzma
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxdpp.errors import DataError
from onnxdpp.graph.walking import escaped, quoted

Take = Callable[[NDArray[np.int64]], NDArray[Any]]

# Rows that are passed over cost at most this much memory at a time.
_SKIP_BYTES = 4 << 20
# The most that one block of one array may take: beyond it the machine, not the data, would be at fault.
LARGEST_BLOCK = 4 << 30

_READ_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,  # an encrypted member; NotImplementedError: an unknown compression
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


class Array(Protocol):
    """An array whose rows (entries along the first axis) can be read in order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, first axis included."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype as stored, byte order included."""

    def reading(self) -> contextlib.AbstractContextManager[Take]:
        """Open for one pass: a function from increasing indices (r,) int64 to the rows (r, *shape[1:])."""

    def whole(self) -> NDArray[Any]:
        """Return the array itself, of shape `shape`."""


@dataclass(frozen=True)
class HeldArray:
    """An array that is in memory already; consecutive rows are views of it."""

    values: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the values."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the dtype of the values."""
        return self.values.dtype

    @contextlib.contextmanager
    def reading(self) -> Iterator[Take]:
        """Give views of consecutive rows, copies of others."""
        yield lambda rows: self.values[_slice(rows)] if _consecutive(rows) else self.values[rows]

    def whole(self) -> NDArray[Any]:
        """Return the values."""
        return self.values


@dataclass(frozen=True)
class RandomArray:
    """Standard normal values (0 and 1 for integers and booleans), the same rows however they are cut."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    seed: tuple[int, ...]

    @contextlib.contextmanager
    def reading(self) -> Iterator[Take]:
        """Draw the rows in order; none may be passed over."""
        rng = np.random.default_rng(self.seed)
        yield lambda rows: self._draw(rng, (len(rows), *self.shape[1:]))

    def whole(self) -> NDArray[Any]:
        """Draw the whole array."""
        return self._draw(np.random.default_rng(self.seed), self.shape)

    def _draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
        if self.dtype.kind == "f":
            return rng.standard_normal(shape, dtype=np.float32).astype(self.dtype, copy=False)
        # int64 whatever the dtype: draws of fewer bits share words within a call, so they depend on the cut.
        return rng.integers(0, 2, shape, dtype=np.int64).astype(self.dtype, copy=False)


@dataclass(frozen=True)
class StoredArray:
    """An array in a .npy file, or in a member of an .npz file.

    Attributes
    ----------
    path : Path
    member : str or None
        The name in the .npz directory; None for a .npy file.
    offset : int
        Where the data start, in bytes after the start of the file or member.
    stamp : tuple of int
        Size and time of the file when its header was read: it must not change later.
    """

    path: Path
    member: str | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool = field(repr=False)
    offset: int = field(repr=False)
    stamp: tuple[int, int] = field(repr=False)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Take]:
        """Open the file and read through it."""
        if self.fortran and len(self.shape) > 1:
            with HeldArray(self.whole()).reading() as take:
                yield take
            return
        with self._stream() as stream:
            reader = _ForwardReader(stream, self)
            yield reader.take
            # Reached when the pass is complete, not when an exception ends it.
            if self.member is not None:
                reader.skip_to(self.shape[0])

    def whole(self) -> NDArray[Any]:
        """Read everything, up to `LARGEST_BLOCK` bytes."""
        size = math.prod(self.shape) * self.dtype.itemsize
        if size > LARGEST_BLOCK:
            raise DataError(
                f"{self.where} takes {size / 2**30:.1f} GiB and cannot be read in blocks of rows. "
                f"Save it in C order (numpy.ascontiguousarray) or in several files."
            )
        with self._stream() as stream:
            flat = np.frombuffer(_exactly(stream, size, self.where), self.dtype)
        return flat.reshape(self.shape, order="F" if self.fortran else "C")

    @property
    def where(self) -> str:
        """How messages name the array."""
        return located(self.path, self.member)

    @contextlib.contextmanager
    def _stream(self) -> Iterator[IO[bytes]]:
        with contextlib.ExitStack() as files:
            with translated(self.where):
                stream: IO[bytes] = files.enter_context(self.path.open("rb"))
                if stamp_of(os.fstat(stream.fileno())) != self.stamp:
                    raise DataError(f"{self.where} changed while it was in use. Run again.")
                if self.member is not None:
                    archive = files.enter_context(zipfile.ZipFile(stream))
                    stream = files.enter_context(archive.open(self.member))
                _exactly(stream, self.offset, self.where)
            yield stream


class _ForwardReader:
    """Rows of a C-ordered array out of a stream that stands at its first value."""

    def __init__(self, stream: IO[bytes], array: StoredArray) -> None:
        self._stream = stream
        self._array = array
        self._row_shape = array.shape[1:]
        self._row_bytes = math.prod(self._row_shape) * array.dtype.itemsize
        self._position = 0

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        if _consecutive(rows):
            return self._read(int(rows[0]), int(rows[-1]) + 1)
        block_rows = max(1, _SKIP_BYTES // self._row_bytes)
        taken = np.empty((len(rows), *self._row_shape), self._array.dtype)
        done = 0
        while done < len(rows):
            first = int(rows[done])
            end = int(np.searchsorted(rows, first + block_rows))
            block = self._read(first, int(rows[end - 1]) + 1)
            taken[done:end] = block[rows[done:end] - first]
            done = end
        return taken

    def skip_to(self, row: int) -> None:
        left = (row - self._position) * self._row_bytes
        if self._array.member is None:
            self._stream.seek(left, os.SEEK_CUR)
        else:
            while left:
                left -= len(_exactly(self._stream, min(left, _SKIP_BYTES), self._array.where))
        self._position = row

    def _read(self, first: int, stop: int) -> NDArray[Any]:
        self.skip_to(first)
        data = _exactly(self._stream, (stop - first) * self._row_bytes, self._array.where)
        self._position = stop
        return np.frombuffer(data, self._array.dtype).reshape(stop - first, *self._row_shape)


@contextlib.contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn what damaged or unreadable files raise into a DataError of one line."""
    try:
        yield
    except _READ_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else escaped(str(error))
        raise DataError(f"{where} cannot be read: {reason or type(error).__name__}.") from error


def located(path: Path, member: str | None = None) -> str:
    """Return how messages name a file, or a member of it."""
    file = escaped(str(path), 300)
    return file if member is None else f"{file}, member {quoted(member)},"


def _exactly(stream: IO[bytes], size: int, where: str) -> bytes:
    with translated(where):
        data = stream.read(size)
    if len(data) != size:
        raise DataError(f"{where} ends early: {size - len(data)} of {size} bytes are missing.")
    return data


def stamp_of(status: os.stat_result) -> tuple[int, int]:
    """Return what changes when a file does: its size and time."""
    return status.st_size, status.st_mtime_ns


def _consecutive(rows: NDArray[np.int64]) -> bool:
    return bool(rows[-1] - rows[0] + 1 == len(rows))


def _slice(rows: NDArray[np.int64]) -> slice:
    return slice(int(rows[0]), int(rows[-1]) + 1)
