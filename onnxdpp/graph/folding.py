"""Constants that a few operators make of other constants, as exporters write them: moved, cast, never computed."""

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, helper

from onnxdpp.graph.attributes import Array, attribute

FOLDING = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def folded(node: NodeProto, inputs: Sequence[Array | None]) -> Array | None:
    """What one of the `FOLDING` operators makes of constant inputs; None where that is not known.

    Parameters
    ----------
    node : NodeProto
    inputs : sequence of array or None
        None where the node leaves the input out.
    """
    data = inputs[0]
    if data is None:
        return None
    try:
        match node.op_type:
            case "Identity":
                return data
            case "Cast":
                return data.astype(helper.tensor_dtype_to_np_dtype(attribute(node, "to", 1)))
            case "Transpose":
                return np.transpose(data, attribute(node, "perm", None))
            case "Flatten":
                axis = attribute(node, "axis", 1)
                axis += data.ndim if axis < 0 else 0
                return data.reshape(int(np.prod(data.shape[:axis])), -1)
            case "Reshape":
                return _reshaped(node, data, inputs[1])
            case _:
                axes = inputs[1] if len(inputs) > 1 else attribute(node, "axes", None)
                return _squeezed(node.op_type, data, None if axes is None else np.ravel(axes))
    except (ValueError, IndexError, TypeError, KeyError):
        return None  # breaks the model too


def _reshaped(node: NodeProto, data: Array, shape: Array | None) -> Array | None:
    if shape is None:
        return None
    target = [int(size) for size in shape]
    if not attribute(node, "allowzero", 0):
        target = [data.shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    return data.reshape(target)


def _squeezed(operator: str, data: Array, axes: Array | None) -> Array:
    if operator == "Squeeze":
        return np.squeeze(data, None if axes is None else tuple(int(axis) for axis in axes))
    return np.expand_dims(data, tuple(int(axis) for axis in axes) if axes is not None else ())
