"""The .npy and .npz formats: which arrays a file has, told from its headers alone.

The contract: what a header declares is compared with the size of the file or zip member before anything of
that size is allocated, so that neither a lying header nor a zip bomb costs memory. Objects are never
unpickled, pipes and devices never opened, equal names never guessed at. All that is wrong is a DataError of
one line.
"""

import contextlib
import math
import os
import stat
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from onnxdpp.errors import DataError
from onnxdpp.graph.arrays import StoredArray, located, stamp_of, translated
from onnxdpp.graph.walking import escaped, quoted

# NumPy itself refuses headers above 10,000 characters; what follows the prefix is data.
_HEADER_PREFIX = 16 << 10
# Version 3 differs in the encoding of field names only, and arrays with fields are refused anyway.
_HEADER_PARSERS = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
    (3, 0): npy.read_array_header_2_0,
}
_NPY_MAGIC = b"\x93NUMPY"
_ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")


def npy_array(path: Path) -> StoredArray:
    """Describe the array of a .npy file.

    Raises
    ------
    DataError
        No such file, not a .npy file, a hostile or lying header, an object array.
    """
    where = located(path)
    with translated(where), _regular(path, where) as file:
        status = os.fstat(file.fileno())
        return _described(file, status.st_size, path, None, stamp_of(status))


def npz_arrays(path: Path) -> dict[str, StoredArray]:
    """Describe the arrays of an .npz file by their names.

    Raises
    ------
    DataError
        As for `npy_array`; equal names; members that are no arrays.
    """
    where = located(path)
    arrays: dict[str, StoredArray] = {}
    with translated(where), _regular(path, where) as file, zipfile.ZipFile(file) as archive:
        stamp = stamp_of(os.fstat(file.fileno()))
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name == entry.filename:
                raise DataError(f"{where} has a member {quoted(name)} that is no .npy array. Save it with numpy.savez.")
            if name in arrays:
                raise DataError(f"{where} has two arrays named {quoted(name)}. Save it again with one of each name.")
            with archive.open(entry) as member:
                arrays[name] = _described(member, entry.file_size, path, entry.filename, stamp)
    if not arrays:
        raise DataError(f"{where} has no arrays in it.")
    return arrays


@contextlib.contextmanager
def _regular(path: Path, where: str) -> Iterator[IO[bytes]]:
    """Open a file whose first bytes are what its suffix promises; never wait for a pipe."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f"{where} is not a regular file.")
    with path.open("rb") as file:
        start = file.read(64)
        file.seek(0)
        wants_zip = path.suffix.lower() == ".npz"
        if not start:
            raise DataError(f"{where} is empty.")
        if start.startswith(b"version https://git-lfs"):
            raise DataError(f"{where} is a Git LFS pointer, not the data. Run git lfs pull.")
        if wants_zip and start.startswith(_NPY_MAGIC):
            raise DataError(f"{where} is a .npy file under another name. Rename it to .npy.")
        if not wants_zip and start.startswith(_ZIP_MAGICS):
            raise DataError(f"{where} is an .npz file under another name. Rename it to .npz.")
        if not start.startswith(_ZIP_MAGICS if wants_zip else _NPY_MAGIC):
            raise DataError(f"{where} is no {path.suffix.lower()} file, whatever its name says.")
        yield file


def _described(stream: IO[bytes], size: int, path: Path, member: str | None, stamp: tuple[int, int]) -> StoredArray:
    shape, fortran, dtype, offset = _header(stream, member, path)
    array = StoredArray(path, member, shape, dtype, fortran, offset, stamp)
    declared = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or declared != size - offset:
        raise DataError(
            f"{array.where} declares {escaped(f'{dtype} {shape}')}, which takes {declared} bytes, "
            f"but holds {size - offset}. The file is damaged."
        )
    return array


def _header(stream: IO[bytes], member: str | None, path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    prefix = BytesIO(stream.read(_HEADER_PREFIX))
    where = located(path, member)
    try:
        shape, fortran, dtype = _HEADER_PARSERS[npy.read_magic(prefix)](prefix)
    except Exception as error:  # a hostile header makes numpy's parser raise almost anything
        raise DataError(f"{where} has no valid .npy header.") from error
    if dtype.hasobject:
        raise DataError(f"{where} holds Python objects, which are never unpickled. Save plain numbers.")
    return shape, fortran, dtype, prefix.tell()
