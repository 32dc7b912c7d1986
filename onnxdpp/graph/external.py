"""Tensors as arrays, those in external data mapped from their file."""

from pathlib import Path

from onnx import TensorProto, numpy_helper

from onnxdpp.graph.attributes import Array
from onnxdpp.graph.walking import is_external


def tensor_array(tensor: TensorProto, folder: Path | None) -> Array | None:
    """The tensor as an array; None where it lies in external data and `folder` does not say where.

    Parameters
    ----------
    tensor : TensorProto
    folder : path or None
        The model's folder.
    """
    if is_external(tensor):
        return None
    return numpy_helper.to_array(tensor)
