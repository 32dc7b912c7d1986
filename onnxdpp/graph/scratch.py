"""Arrays of one run in temporary files: what is pruned of a large model shall not pile up in memory.

The files lie in a folder of their own, ``onnxdpp-*``, where temporary files belong (``TMPDIR``). It goes with the
`Scratch`, at the latest at the end of the process. What a killed process leaves there is the system's to clean: nothing
but the folder that was made here is ever removed.
"""

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from onnxdpp.errors import MachineError
from onnxdpp.graph.attributes import Array
from onnxdpp.graph.external import mapped, mapped_from
from onnxdpp.graph.walking import quoted

SMALL = 1024
"""Bytes below which an array is held in memory, and a tensor by the model itself."""

Key = TypeVar("Key")


class Scratch:
    """Temporary files for arrays; none, and no folder, before the first array that needs one.

    Parameters
    ----------
    active : bool, default True
        Whether arrays go into files at all.
    """

    def __init__(self, *, active: bool = True) -> None:
        self._active = active
        self._folder: Path | None = None
        self._files: set[Path] = set()
        self._count = 0

    def spilled(self, arrays: Mapping[Key, Array], *, more: bool = False) -> dict[Key, Array]:
        """The same arrays, all but small ones mapped from files.

        Parameters
        ----------
        arrays : mapping of arrays
            Those that lie in a file already stay there. Files of earlier calls that hold none of them are removed.
        more : bool
            Whether files of earlier calls stay all the same.

        Raises
        ------
        MachineError
            If the disk does not take them.
        """
        result = {key: self._spilled(array) for key, array in arrays.items()}
        if more:
            return result
        places = (mapped_from(array) for array in result.values())
        needed = {place.path for place in places if place is not None}
        for path in self._files - needed:
            path.unlink(missing_ok=True)
        self._files &= needed
        return result

    def _spilled(self, array: Array) -> Array:
        if not self._active or array.nbytes < SMALL or mapped_from(array) is not None:
            return array
        try:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="onnxdpp-")).resolve()
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            path = self._folder / str(self._count)
            self._count += 1
            self._files.add(path)
            dtype = array.dtype.newbyteorder("<")
            path.write_bytes(np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data)
            return mapped(path, array.dtype, array.shape)
        except OSError as error:
            where = quoted(str(self._folder or tempfile.tempdir), limit=300)
            raise MachineError(
                f"Cannot write {array.nbytes} bytes of pruned weights into {where}: {error.strerror or error}. "
                "Set TMPDIR to a folder with more room."
            ) from error
