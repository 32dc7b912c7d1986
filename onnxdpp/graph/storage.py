"""Masked weights in fewer bytes: pack, unpack, and what was done to each weight.

A packed model is an ordinary one. In place of an initializer it holds the values that are not zero, beside codes that
say where they belong, and a few standard operators in front of all nodes that write the same tensor under the same name
(`decoders`); or a sparse initializer. So nothing else in the graph changes. The metadata tell what it was (`records`),
so that `unpack` gives the dense model back, byte by byte where its initializers hold raw data in the model itself.

Which weights, and in which form, is chosen by bytes alone (`choosing`). Cost: linear in the entries; what was encoded
is decoded and compared, bit by bit.
"""

from pathlib import Path

import numpy as np
from onnx import ModelProto, SparseTensorProto, TensorProto

from onnxdpp.errors import UsageError
from onnxdpp.graph.attributes import Array
from onnxdpp.graph.choosing import Stored, choose, rounded
from onnxdpp.graph.codes import bits_of, coded, decoded
from onnxdpp.graph.decoders import decoder, own_constants, shared_constants
from onnxdpp.graph.external import tensor_array
from onnxdpp.graph.index import Graph
from onnxdpp.graph.records import Record, add_records, has_records
from onnxdpp.graph.rewriting import add_initializer, fill
from onnxdpp.graph.scratch import Scratch
from onnxdpp.graph.unpacking import Restored, Spill, unpacked

__all__ = ["FORMS", "STORAGES", "VALUES", "Stored", "is_packed", "pack", "unpack"]

STORAGES = ("dense", "packed", "sparse", "auto")
VALUES = ("same", "float16")
FORMS = ("dense", "packed", "gaps", "sparse")


def pack(
    model: ModelProto,
    folder: Path | None,
    *,
    storage: str = "auto",
    values: str = "same",
    scratch: Scratch | None = None,
) -> tuple[ModelProto, list[Stored]]:
    """A copy of a model whose weights with zeros in them take fewer bytes, and what became of each.

    Parameters
    ----------
    model : ModelProto
        Sound (`check_model`); what is packed in it already is unpacked first.
    folder : path or None
        Where its external data lie.
    storage : {"dense", "packed", "sparse", "auto"}
        ``packed``: codes that operators decode; ``sparse``: sparse initializers; ``auto``: the smallest of all, with
        weights in an N:M pattern left dense.
    values : {"same", "float16"}
        How kept values of float32 and float64 are stored where operators decode them.
    scratch : Scratch, optional
        Where new arrays go; without it, into the model.

    Returns
    -------
    ModelProto, list of Stored
        For each initializer of `choosing.SMALLEST` bytes and `choosing.ZEROS` zeros, in the order of the model.

    Raises
    ------
    UsageError
        If `storage` or `values` is none of these.
    ModelError
        If what is packed in it does not fit its metadata, or external data cannot be read.
    """
    for word, known, given in (("Storage", STORAGES, storage), ("Values", VALUES, values)):
        if given not in known:
            raise UsageError(f"{word} {given!r} is none of {', '.join(known)}.")
    spill = _spill(scratch)
    result, _ = unpacked(model, folder, spill)
    choices, shared = choose(Graph(result, folder), storage, values)
    records = [choice.record for choice in choices if choice.record is not None]
    _encode(result, folder, shared, records, spill)
    return result, [choice.stored for choice in choices]


def unpack(
    model: ModelProto, folder: Path | None, *, scratch: Scratch | None = None
) -> tuple[ModelProto, list[Stored]]:
    """A copy of a model with every packed weight dense again, and how each was stored.

    Parameters
    ----------
    model : ModelProto
        Sound (`check_model`); one in which nothing is packed comes back as it is.
    folder, scratch
        As for `pack`.

    Raises
    ------
    ModelError
        If what is packed in it does not fit its metadata.
    """
    result, restored = unpacked(model, folder, _spill(scratch))
    return result, [_told(part) for part in restored]


def is_packed(model: ModelProto) -> bool:
    """Whether the metadata of a model say that something is packed in it."""
    return has_records(model)


def _told(part: Restored) -> Stored:
    record = part.record
    dense = record.size * record.numpy_type.itemsize
    values = "float16" if record.narrow else "same"
    return Stored(record.name, record.form, record.shape, record.dtype, part.nonzero, dense, part.bytes, values=values)


def _spill(scratch: Scratch | None) -> Spill:
    """Puts arrays into `scratch`, one by one, where there is one."""
    held: dict[str, Array] = {}

    def spill(name: str, array: Array) -> Array:
        if scratch is None:
            return array
        held.update(scratch.spilled({**held, name: array}))
        return held[name]

    return spill


def _encode(model: ModelProto, folder: Path | None, shared: str, records: list[Record], spill: Spill) -> None:
    """Store the tensors of `records` as they say, in place."""
    if not records:
        return
    initializers = model.graph.initializer
    tensors = {tensor.name: tensor for tensor in initializers}
    common: dict[str, Array] = {}
    nodes = []
    for record in records:
        tensor = tensors[record.name]
        if record.form == "sparse":
            model.graph.sparse_initializer.append(_sparse(tensor, folder, record))
            continue
        nodes += decoder(record, shared)
        common |= shared_constants(record)
        codes = _fill_coded(tensor, folder, record, spill)
        for role, array in ({"codes": codes} | own_constants(record)).items():
            add_initializer(model, f"{record.stem}/{role}", spill(f"{record.stem}/{role}", array))
    for role, array in common.items():
        add_initializer(model, f"{shared}/{role}", array)
    gone = [record.position for record in records if record.form == "sparse"]
    for place in sorted(gone, reverse=True):
        del initializers[place]
    for number, node in enumerate(nodes):
        model.graph.node.insert(number, node)
    add_records(model, shared, records)


def _array(tensor: TensorProto, folder: Path | None) -> Array:
    array = tensor_array(tensor, folder)
    if array is None:
        raise ValueError(f"{tensor.name!r} lies in external data")
    return array


def _fill_coded(tensor: TensorProto, folder: Path | None, record: Record, spill: Spill) -> Array:
    """Let `tensor` hold the values only; returns the codes."""
    array = _array(tensor, folder)
    entries = bits_of(rounded(array)[0] if record.narrow else array)
    codes, kept = coded(record.form, entries)
    if not np.array_equal(decoded(record.form, codes, kept, record.size), entries):
        raise RuntimeError(f"The code of {record.name!r} does not give it back.")
    values = kept.view(record.numpy_type)
    if record.narrow:
        values = values.astype(np.float16)
        tensor.data_type = TensorProto.FLOAT16
    tensor.name = f"{record.stem}/values"
    fill(tensor, spill(tensor.name, values))
    return codes


def _sparse(tensor: TensorProto, folder: Path | None, record: Record) -> SparseTensorProto:
    """The same tensor as a sparse initializer, indices linear and ascending; it never lies in external data."""
    entries = bits_of(_array(tensor, folder))
    places = np.flatnonzero(entries).astype(np.int64)
    result = SparseTensorProto(dims=record.shape)
    result.values.CopyFrom(tensor)
    fill(result.values, entries[places].view(record.numpy_type))
    result.indices.data_type = TensorProto.INT64
    fill(result.indices, places)
    return result
