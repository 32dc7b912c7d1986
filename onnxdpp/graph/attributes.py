"""Attributes of nodes, and the type of the arrays that the graph half deals in."""

from typing import Any, TypeAlias, TypeGuard

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto

Array: TypeAlias = NDArray[Any]


def is_float(value: Any) -> TypeGuard[Array]:
    """Whether an output of onnxruntime is an array of floats: it may be a list, of a sequence or of maps."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """Value of the attribute `name` of `node`, or `default`."""
    for entry in node.attribute:
        if entry.name == name:
            return onnx.helper.get_attribute_value(entry)
    return default
