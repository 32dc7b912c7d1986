"""From a packed file back to the dense one: nothing is believed that does not stand in the graph.

The metadata name what was packed (`records`). For each tensor the operators that must be there are built anew and
compared with those that are; then sizes, codes and values, before anything is made of them. A tensor that no node
writes any more was made dense by somebody else (simplifiers fold it): it stays as it is. Anything between is an error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnxdpp.errors import ModelError
from onnxdpp.graph.attributes import Array
from onnxdpp.graph.codes import Bits, bits_of, decoded
from onnxdpp.graph.decoders import MAX_FOLDED, decoder, own_constants, same_node, shared_constants
from onnxdpp.graph.external import tensor_array
from onnxdpp.graph.records import KEY, Record, has_records, take_records
from onnxdpp.graph.rewriting import fill
from onnxdpp.graph.walking import quoted, read_names

Spill = Callable[[str, Array], Array]
"""Puts a new array for the initializer of this name where it belongs: memory, or a file."""

BLOW_UP = 1024
"""How many times larger than what is stored a tensor above `MAX_FOLDED` may be."""


@dataclass(frozen=True)
class Restored:
    """A tensor that is dense again.

    Attributes
    ----------
    record : Record
    nonzero : int
    bytes : int
        Of the codes and values that it had been stored in.
    """

    record: Record
    nonzero: int
    bytes: int


def unpacked(model: ModelProto, folder: Path | None, spill: Spill) -> tuple[ModelProto, list[Restored]]:
    """A copy in which the initializers that were packed are dense, where they were, and nothing tells of it.

    Raises
    ------
    ModelError
        If metadata and model do not fit each other.
    """
    result = ModelProto()
    result.CopyFrom(model)
    if not has_records(model):
        return result, []
    shared, records = take_records(result)
    file = _File(result, folder, shared)
    restored = [_restored(file, record, spill) for record in records if file.holds(record)]
    file.clean()
    return result, restored


def too_large(dense: int, stored: int) -> bool:
    """Whether the bytes of a tensor are absurdly many beside those that it is stored in."""
    return dense > max(MAX_FOLDED, BLOW_UP * stored)


def _restored(file: "_File", record: Record, spill: Spill) -> Restored:
    try:
        entries, stored = file.sparse_entries(record) if record.form == "sparse" else file.coded_entries(record)
    except ValueError as error:
        raise ModelError(
            f"The metadata entry {quoted(KEY)} says that {quoted(record.name)} is stored {record.form}, and the model "
            f"does not fit: {error}. Pack the dense model again; or remove the entry to take this one as it stands."
        ) from error
    array = entries.view(record.numpy_type).reshape(record.shape)
    file.put_back(record, spill(record.name, array))
    return Restored(record, int(np.count_nonzero(entries)), stored)


class _File:
    """What stands in a packed model; it is changed in place, but for `clean` only where nothing else looks."""

    def __init__(self, model: ModelProto, folder: Path | None, shared: str) -> None:
        self.graph, self.folder, self.shared = model.graph, folder, shared
        self.tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        self.sparse = {part.values.name: part for part in self.graph.sparse_initializer}
        self.inputs = {value.name for value in self.graph.input}
        self.producer = {name: number for number, node in enumerate(self.graph.node) for name in node.output}
        self.readers = _readers(self.graph)
        self.used_nodes: set[int] = set()
        self.used_parts: set[str] = set()
        self.used_shared: set[str] = set()
        self.used_sparse: list[Record] = []

    def holds(self, record: Record) -> bool:
        """Whether the tensor still stands there packed."""
        return record.name in (self.sparse if record.form == "sparse" else self.producer)

    def coded_entries(self, record: Record) -> tuple[Bits, int]:
        """The entries of a tensor that operators decode, and the bytes of its codes and values.

        Raises
        ------
        ValueError
            If something is not what it should be; the message is the reason.
        """
        nodes = decoder(record, self.shared)
        numbers = {self._number(node) for node in nodes}
        codes = self._array(f"{record.stem}/codes", (np.uint8, np.uint16) if record.form == "gaps" else (np.uint8,))
        values = self._array(f"{record.stem}/values", (np.float16 if record.narrow else record.numpy_type,))
        stored = codes.nbytes + values.nbytes
        if too_large(record.size * record.numpy_type.itemsize, stored):
            raise ValueError(f"{record.size} entries are too many for {stored} bytes")
        own = {f"{record.stem}/{role}": array for role, array in own_constants(record).items()}
        shared = {f"{self.shared}/{role}": array for role, array in shared_constants(record).items()}
        for name, array in (own | shared).items():
            if not np.array_equal(self._array(name, (array.dtype,), array.shape), array):
                raise ValueError(f"{quoted(name)} is not what it should be")
        parts = {f"{record.stem}/codes", f"{record.stem}/values", *own}
        for name in sorted(parts.union(*(node.output for node in nodes)) - {record.name}):
            if self.readers.get(name, set()) - numbers:
                raise ValueError(f"{quoted(name)} is read by others too")
        if record.narrow:
            values = values.astype(record.numpy_type)
        entries = decoded(record.form, codes, bits_of(values), record.size)
        self.used_nodes |= numbers
        self.used_parts |= parts
        self.used_shared |= shared.keys()
        return entries, stored

    def _number(self, wanted: NodeProto) -> int:
        """The number of the node that does what `wanted` does."""
        number = self.producer.get(wanted.output[0])
        if number is None or not same_node(self.graph.node[number], wanted):
            raise ValueError(f"no {wanted.op_type} writes {quoted(wanted.output[0])} as it should")
        return number

    def _array(self, name: str, dtypes: Sequence[DTypeLike], shape: tuple[int, ...] | None = None) -> Array:
        """An initializer of one axis, or of `shape`."""
        tensor = self.tensors.get(name)
        if tensor is None or name in self.inputs:
            raise ValueError(f"{quoted(name)} is no initializer, or one that callers may override")
        if tensor.data_type not in [helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) for dtype in dtypes]:
            raise ValueError(f"{quoted(name)} has another element type than it should")
        if len(tensor.dims) != 1 if shape is None else tuple(tensor.dims) != shape:
            raise ValueError(f"{quoted(name)} has another shape than it should")
        return self._read(tensor)

    def _read(self, tensor: TensorProto) -> Array:
        array = tensor_array(tensor, self.folder)
        if array is None:
            raise ValueError(f"{quoted(tensor.name)} lies in external data, and nothing says in which folder")
        return array

    def sparse_entries(self, record: Record) -> tuple[Bits, int]:
        """The entries of a sparse initializer, and the bytes of its indices and values; as `coded_entries`."""
        part = self.sparse[record.name]
        if tuple(part.dims) != record.shape or part.values.data_type != record.data_type:
            raise ValueError("its shape or element type is another")
        if part.indices.data_type != TensorProto.INT64 or len(part.indices.dims) != 1 or len(part.values.dims) != 1:
            raise ValueError("its indices are not of one axis and int64")
        values, places = self._read(part.values), self._read(part.indices)
        stored = values.nbytes + places.nbytes
        if too_large(record.size * values.dtype.itemsize, stored):
            raise ValueError(f"{record.size} entries are too many for {stored} bytes")
        if len(places) != len(values):
            raise ValueError(f"it has {len(places)} indices for {len(values)} values")
        if len(places) and not (places[0] >= 0 and places[-1] < record.size and (places[1:] > places[:-1]).all()):
            raise ValueError(f"its indices are not ascending ones below {record.size}")
        entries = np.zeros(record.size, f"u{values.dtype.itemsize}")
        entries[places] = bits_of(values)
        self.used_sparse.append(record)
        return entries, stored

    def put_back(self, record: Record, array: Array) -> None:
        """Make the values of a tensor the whole tensor."""
        sparse = record.form == "sparse"
        tensor = self.sparse[record.name].values if sparse else self.tensors[f"{record.stem}/values"]
        tensor.name, tensor.data_type = record.name, record.data_type
        fill(tensor, array)

    def clean(self) -> None:
        """Drop what decoded, and move what was sparse among the dense initializers.

        Raises
        ------
        ModelError
            If there are too few of them for the position of one.
        """
        for number in sorted(self.used_nodes, reverse=True):
            del self.graph.node[number]
        gone = self.used_parts | (self.used_shared - _readers(self.graph).keys())
        initializers = self.graph.initializer
        for number in reversed([n for n, tensor in enumerate(initializers) if tensor.name in gone]):
            del initializers[number]
        names = {record.name for record in self.used_sparse}
        for record in sorted(self.used_sparse, key=lambda record: record.position):
            if record.position > len(initializers):
                raise ModelError(
                    f"The metadata entry {quoted(KEY)} says that {quoted(record.name)} was initializer number "
                    f"{record.position}, and there are {len(initializers)} before it. Remove the entry."
                )
            initializers.insert(record.position, self.sparse[record.name].values)
        sparse = self.graph.sparse_initializer
        for number in reversed([n for n, part in enumerate(sparse) if part.values.name in names]):
            del sparse[number]


def _readers(graph: GraphProto) -> dict[str, set[int]]:
    """Which nodes read each value, their bodies included; -1 stands for the graph's outputs."""
    result: dict[str, set[int]] = {value.name: {-1} for value in graph.output}
    for number, node in enumerate(graph.node):
        for name in read_names(node):
            result.setdefault(name, set()).add(number)
    return result
