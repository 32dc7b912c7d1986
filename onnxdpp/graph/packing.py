"""What a model with external data is written as: one ``.onnx`` and one data file.

The data file is named after the SHA-256 of its content, ``onnxdpp-<16 hexadecimal digits>.data``: a new model never
overwrites the data of an old one, and the same weights give the same bytes whatever the output is called. In it the
tensors follow each other in the order of the model, each at a multiple of 64 bytes, one of 1 MiB or more at a
multiple of 4096. What two tensors share stays shared. Data are copied in blocks, never held as a whole.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from onnx import ModelProto, TensorProto

from onnxdpp.errors import ModelError
from onnxdpp.graph.external import Extent, extent, refer
from onnxdpp.graph.scratch import SMALL
from onnxdpp.graph.walking import all_tensors, is_external, raw_bytes

_BLOCK = 1 << 20
_PAGED = 1 << 20  # bytes from which on a tensor starts at a page

Piece: TypeAlias = tuple[int, Extent | TensorProto]


@dataclass(frozen=True)
class DataFile:
    """A data file to be written.

    Attributes
    ----------
    name : str
    sha256 : str
        Of its bytes, hexadecimal.
    size : int
        In bytes.
    pieces : sequence of (offset, Extent or TensorProto)
        What it consists of, by offset, zeros between: bytes of other files, and ``raw_data``.
    """

    name: str
    sha256: str
    size: int
    pieces: Sequence[Piece]

    def blocks(self) -> Iterator[bytes]:
        """Its bytes; an OSError where a file that they come from cannot be read."""
        return _blocks(self.pieces)


def packed(model: ModelProto, folder: Path | None, *, all_large: bool = False) -> tuple[ModelProto, DataFile]:
    """A model as it is written beside its data file.

    Parameters
    ----------
    model : ModelProto
        Not changed.
    folder : path or None
        Where its external data lie now.
    all_large : bool, default False
        Whether initializers that it holds itself, but for small ones, go into the data file too.

    Returns
    -------
    ModelProto, DataFile

    Raises
    ------
    ModelError
        If the model has external data and `folder` is not given.
    OSError
        If they cannot be read.
    """
    result = ModelProto()
    result.CopyFrom(model)
    pieces: list[Piece] = []
    moved: list[tuple[TensorProto, int, int]] = []
    shared: dict[Extent, int] = {}
    end = 0
    movable = len(model.graph.initializer) if all_large else 0  # they come first
    for number, ((label, old), (_, new)) in enumerate(zip(all_tensors(model), all_tensors(result), strict=True)):
        source = _source(old, label, folder, number < movable)
        if source is None:
            continue
        size = raw_bytes(old)
        offset = shared.get(source) if isinstance(source, Extent) else None
        if offset is None:
            grid = 4096 if size >= _PAGED else 64
            offset = -(-end // grid) * grid
            end = offset + size
            pieces.append((offset, source))
            if isinstance(source, Extent):
                shared[source] = offset
        moved.append((new, offset, size))
    digest = hashlib.sha256()
    for block in _blocks(pieces):
        digest.update(block)
    file = DataFile(f"onnxdpp-{digest.hexdigest()[:16]}.data", digest.hexdigest(), end, pieces)
    for tensor, offset, size in moved:
        refer(tensor, file.name, offset, size)
    return result, file


def _source(tensor: TensorProto, label: str, folder: Path | None, movable: bool) -> Extent | TensorProto | None:
    """Where the data file gets a tensor's bytes from; None where the model holds them itself."""
    if is_external(tensor):
        if folder is None:
            raise ModelError(f"{label} lies in external data, and nothing says in which folder. Name it.")
        return extent(tensor, folder)
    return tensor if movable and tensor.HasField("raw_data") and raw_bytes(tensor) >= SMALL else None


def _blocks(pieces: Iterable[Piece]) -> Iterator[bytes]:
    end = 0
    for offset, source in pieces:
        yield bytes(offset - end)
        if isinstance(source, Extent):
            yield from _read(source)
            end = offset + source.length
        else:
            yield source.raw_data
            end = offset + raw_bytes(source)


def _read(place: Extent) -> Iterator[bytes]:
    left = place.length
    with place.path.open("rb") as file:
        file.seek(place.offset)
        while left:
            block = file.read(min(_BLOCK, left))
            if not block:
                raise OSError(f"{place.path} became shorter")
            left -= len(block)
            yield block
