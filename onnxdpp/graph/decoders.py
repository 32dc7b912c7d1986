"""The standard operators that turn the codes of a tensor (`codes`) into the tensor again.

- *packed*: Cast, Gather from a table of 256 x 8 bits that all packed tensors share, Reshape, (Slice where 8 does not
  divide the number of entries,) Cast, CumSum, Mul, Gather, Reshape.
- *gaps*: Cast, CumSum, ConstantOfShape, ScatterElements, Reshape.

Where values are stored as float16, one more Cast widens them. Onnxruntime folds all of these into one plain initializer
when a session is made, from the basic level on, but no node whose output is larger than `MAX_FOLDED` bytes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from onnxdpp.graph.attributes import Array
from onnxdpp.graph.index import ONNX_DOMAINS
from onnxdpp.graph.records import Record
from onnxdpp.graph.walking import is_external

OPSET = 11
"""The first with CumSum and ScatterElements."""

MAX_FOLDED = 2**30
"""Bytes of a node's output that onnxruntime still folds: its default of the session entry
``optimization.constant_folding_max_output_size_in_bytes`` since 1.27."""

TABLE: NDArray[np.uint8] = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
"""(256, 8): the bits of each byte, the highest first."""


def largest_output(form: str, size: int, itemsize: int) -> int:
    """Bytes of the largest value that the operators compute on the way to `size` entries of `itemsize` bytes.

    Of gaps, where they are no more than entries: the codes are int32 while they are summed.
    """
    return max(4 * (-(-size // 8) * 8 if form == "packed" else size), itemsize * size)


def own_constants(record: Record) -> dict[str, Array]:
    """The initializers, beside codes and values, that only this tensor's operators read, by role."""
    result: dict[str, Array] = {"shape": np.array(record.shape, np.int64)}
    if record.form == "gaps" or record.size % 8:
        result["size"] = np.array([record.size], np.int64)
    return result


def shared_constants(record: Record) -> dict[str, Array]:
    """The initializers that it shares with the other tensors of the model, by role."""
    result: dict[str, Array] = {"axis": np.array(0, np.int64)}
    if record.form == "packed":
        result |= {"table": TABLE, "flat": np.array([-1], np.int64)}
        if record.size % 8:
            result["start"] = np.array([0], np.int64)
    return result


ROLES = {
    "own": ("values", "codes", "shape", "size"),
    "shared": ("axis", "table", "flat", "start"),
    "written": tuple("wide numbers bytes bits cut mask count place flat steps zeros dense".split()),
}
"""What names end with behind a stem: of a tensor's own constants, of shared ones, of nodes and what they write."""


def decoder(record: Record, shared: str) -> list[NodeProto]:
    """The operators that write a tensor, in topological order.

    Parameters
    ----------
    record : Record
        Of the tensor.
    shared : str
        What the names of shared constants begin with.
    """
    nodes: list[NodeProto] = []
    size, wide = record.size, record.data_type

    def own(role: str) -> str:
        return f"{record.stem}/{role}"

    def common(role: str) -> str:
        return f"{shared}/{role}"

    def add(operator: str, inputs: list[str], role: str, **attributes: Any) -> str:
        output = record.name if role == "dense" else own(role)
        nodes.append(helper.make_node(operator, inputs, [output], name=own(role), **attributes))
        return output

    values = add("Cast", [own("values")], "wide", to=wide) if record.narrow else own("values")
    if record.form == "packed":
        numbers = add("Cast", [own("codes")], "numbers", to=TensorProto.INT32)
        bits = add("Gather", [common("table"), numbers], "bytes")
        bits = add("Reshape", [bits, common("flat")], "bits")
        if size % 8:
            bits = add("Slice", [bits, common("start"), own("size")], "cut")
        mask = add("Cast", [bits], "mask", to=TensorProto.INT32)
        count = add("CumSum", [mask, common("axis")], "count")
        place = add("Mul", [count, mask], "place")
        flat = add("Gather", [values, place], "flat")
    else:
        steps = add("Cast", [own("codes")], "steps", to=TensorProto.INT32)
        place = add("CumSum", [steps, common("axis")], "place")
        zero = np.zeros(1, record.numpy_type)
        zeros = add("ConstantOfShape", [own("size")], "zeros", value=numpy_helper.from_array(zero))
        flat = add("ScatterElements", [zeros, place, values], "flat", axis=0)
    add("Reshape", [flat, own("shape")], "dense")
    return nodes


def same_node(node: NodeProto, wanted: NodeProto) -> bool:
    """Whether a node does what `wanted` does, on the same values; names and comments do not count."""
    return (
        node.op_type == wanted.op_type
        and node.domain in ONNX_DOMAINS
        and list(node.input) == list(wanted.input)
        and list(node.output) == list(wanted.output)
        and _attributes(node) == _attributes(wanted)
    )


def _attributes(node: NodeProto) -> Mapping[str, object]:
    return {entry.name: _content(entry) for entry in node.attribute}


def _content(entry: AttributeProto) -> object:
    if entry.type != AttributeProto.TENSOR or is_external(entry.t):
        return entry.SerializeToString(deterministic=True)
    return entry.t.data_type, tuple(entry.t.dims), numpy_helper.to_array(entry.t).tobytes()
