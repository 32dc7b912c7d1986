"""Bytes to a ModelProto, or a guess at what they are instead."""

import re

import onnx
from google.protobuf.message import DecodeError

# Offset, bytes, what begins with them there.
_SIGNATURES = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the model. Run git lfs pull"),
    (0, b"\x1f\x8b", "a gzip archive. Unpack it"),
    (0, b"PK\x03\x04", "a zip archive, perhaps a PyTorch .pt or a NumPy .npz. Unpack or export it"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive. Unpack it"),
    (0, b"BZh", "a bzip2 archive. Unpack it"),
    (0, b"\xfd7zXZ", "an xz archive. Unpack it"),
    (257, b"ustar", "a tar archive. Unpack it"),
    (0, b"%PDF", "a PDF document"),
    (4, b"ORTM", "a model in ORT format. Name the .onnx file that it was made from"),
    (4, b"TFL3", "a TensorFlow Lite model. Convert it to ONNX"),
    (0, b"\x89HDF", "an HDF5 file, perhaps a Keras model. Export it to ONNX"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x80\x02", "a Python pickle, perhaps a PyTorch file. Export it to ONNX"),
    (0, b"\x80\x04", "a Python pickle. Export it to ONNX"),
    (8, b'{"', "a safetensors file. Export the model to ONNX"),
)


_DAMAGED = "no ONNX model, or one that is cut short, damaged or followed by other bytes. Copy or export it again"


class NotAModelError(ValueError):
    """The bytes are no ONNX model; the message goes on from ``The file ...`` and has no full stop."""


def decode(data: bytes) -> onnx.ModelProto:
    """Decode one model that fills all of `data`.

    Raises
    ------
    NotAModelError
        If there is none, or no graph in it, or more than one model.
    """
    if not data:
        raise NotAModelError("is empty")
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise NotAModelError(f"is {_guess_kind(data) or _DAMAGED}") from error
    if not model.HasField("graph"):
        raise NotAModelError(f"is {_guess_kind(data) or 'a model without a graph'}")
    if (graphs := _count_graphs(data)) > 1:
        raise NotAModelError(f"holds {graphs} models, one after the other")
    return model


def _guess_kind(data: bytes) -> str | None:
    for offset, signature, kind in _SIGNATURES:
        if data.startswith(signature, offset):
            return kind
    head = data[:1024]
    if not re.fullmatch(rb"[\t\n\f\r -~\x80-\xff]+", head):
        return None
    if re.match(rb"\s*(<!doctype html|<html)", head, re.IGNORECASE):
        return "an HTML page, perhaps the error page of a download"
    if re.match(rb"\s*[{\[]", head):
        return "a JSON text"
    return "a plain text"


def _count_graphs(data: bytes) -> int:
    """Number of graph fields on the wire; decoding merges those of two concatenated models without a word.

    Only the fields of the outermost message are walked over, of data that are known to decode.
    """

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = data[at]
            value |= (byte & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if byte < 0x80:
                return value, at

    graphs = at = 0
    while at < len(data):
        key, at = varint(at)
        graphs += key >> 3 == onnx.ModelProto.GRAPH_FIELD_NUMBER
        match key & 7:
            case 0:
                _, at = varint(at)
            case 1:
                at += 8
            case 2:
                length, at = varint(at)
                at += length
            case 5:
                at += 4
    return graphs
