"""External data: where a tensor's bytes lie, and tensors as arrays that are mapped from there, not read.

A model names its data files relative to its folder. A tensor that onnxdpp itself put into a temporary file
(`scratch`) has an absolute location, which a model file never has: `load_model` refuses it.
"""

import mmap
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxdpp.errors import ModelError
from onnxdpp.graph.attributes import Array
from onnxdpp.graph.checking import check_numbers
from onnxdpp.graph.walking import SUB_BYTE, all_tensors, is_external, quoted, raw_bytes

KEYS = frozenset(["location", "offset", "length", "checksum"])
"""What external data may say of themselves; onnxruntime refuses a model that says more."""


@dataclass(frozen=True, order=True)
class Extent:
    """`length` bytes of a file from `offset` on."""

    path: Path
    offset: int
    length: int


def location_of(tensor: TensorProto) -> str:
    """The location that an external tensor gives, as it gives it; empty where it gives none."""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def extent(tensor: TensorProto, folder: Path) -> Extent:
    """Where the bytes of an external tensor lie.

    Parameters
    ----------
    tensor : TensorProto
        External, of a known type and possible dimensions.
    folder : path
        The model's folder.

    Raises
    ------
    ModelError
        If offset or length are no numbers.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(raw_bytes(tensor))))
    except ValueError:
        raise ModelError(f"Their offset or length in {quoted(location)} is no number.") from None
    return Extent(folder / location, offset, length)


def check_external_data(model: ModelProto, folder: Path) -> None:
    """Refuse external data that do not lie, all of them, in regular files inside of `folder`, and those that hold NaN.

    Raises
    ------
    ModelError
        It names the tensor.
    """
    for label, tensor in all_tensors(model):
        if not is_external(tensor):
            continue
        try:
            _check_extent(tensor, folder)
            array = tensor_array(tensor, folder)
        except (ModelError, OSError) as error:
            reason = str(error) if isinstance(error, ModelError) else f"{error.strerror}."
            raise ModelError(f"{label} has external data. {reason}") from error
        if array is not None and array.dtype.kind == "f":
            check_numbers(array, label)


def _check_extent(tensor: TensorProto, folder: Path) -> None:
    unknown = sorted({entry.key for entry in tensor.external_data} - KEYS)
    if unknown:
        raise ModelError(f"They have the unknown entry {quoted(unknown[0])}.")
    location = location_of(tensor)
    parts = PureWindowsPath(location)  # knows both separators, and drives
    if not location or parts.anchor or ".." in parts.parts:
        raise ModelError(f"Their location {quoted(location)} is no path inside of the model's folder.")
    place = extent(tensor, folder)
    if not place.path.exists():
        raise ModelError(f"Their file {quoted(location)} does not exist beside the model.")
    if not place.path.resolve().is_relative_to(folder.resolve()):
        raise ModelError(f"Their file {quoted(location)} is a link that leads out of the model's folder.")
    if not place.path.is_file():
        raise ModelError(f"Their file {quoted(location)} is not a regular file.")
    needed, size = raw_bytes(tensor), place.path.stat().st_size
    if place.length != needed or not 0 <= place.offset <= size - needed:
        raise ModelError(
            f"They should be {needed} bytes; the model says {place.length} at {place.offset} of {quoted(location)}, "
            f"which has {size}."
        )


def tensor_array(tensor: TensorProto, folder: Path | None) -> Array | None:
    """The tensor as an array; None where it lies in external data and `folder` does not say where.

    Parameters
    ----------
    tensor : TensorProto
        If external, as `check_external_data` wants it.
    folder : path or None
        The model's folder.

    Returns
    -------
    array or None
        Of an external tensor: read-only, mapped from its file (elements smaller than a byte are read).

    Raises
    ------
    ModelError
        If the file has gone, or shrunk, since it was checked.
    """
    if not is_external(tensor):
        return numpy_helper.to_array(tensor)
    if folder is None:
        return None
    shape = tuple(tensor.dims)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    place = extent(tensor, folder)
    if not place.length:
        return np.empty(shape, dtype)
    try:
        if TensorProto.DataType.Name(tensor.data_type) not in SUB_BYTE:
            return mapped(place.path, dtype, shape, place.offset)
        packed = TensorProto(dims=shape, data_type=tensor.data_type)
        packed.raw_data = mapped(place.path, np.dtype(np.uint8), (place.length,), place.offset).tobytes()
        return numpy_helper.to_array(packed)
    except (OSError, ValueError) as error:
        raise ModelError(f"External data in {quoted(str(place.path), limit=300)} cannot be read: {error}.") from error


def mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int = 0) -> Array:
    """An array in a file, little-endian: read-only, in memory only while it is touched."""
    return np.asarray(np.memmap(str(path), dtype.newbyteorder("<"), "r", offset, shape))


def mapped_from(array: Array) -> Extent | None:
    """Where an array that `mapped` gave lies; None for any other array, a part of such a one included."""
    whole = array.base
    if not (isinstance(whole, np.memmap) and isinstance(whole.base, mmap.mmap)):
        return None
    if (array.ctypes.data, array.nbytes, array.dtype) != (whole.ctypes.data, whole.nbytes, whole.dtype):
        return None
    return Extent(Path(str(whole.filename)), whole.offset, whole.nbytes)


def refer(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Let a tensor lie in external data; whatever it held or named before is dropped."""
    clear(tensor)
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def clear(tensor: TensorProto) -> None:
    """Let a tensor hold no data and name none."""
    for field in ("float_data", "double_data", "int32_data", "int64_data", "uint64_data", "raw_data"):
        tensor.ClearField(field)
    if is_external(tensor):
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")


def has_external_data(model: ModelProto) -> bool:
    """Whether some tensor of a model lies in another file."""
    return any(is_external(tensor) for _, tensor in all_tensors(model))


def rooted(model: ModelProto, folder: Path | None) -> tuple[ModelProto, str]:
    """A copy of a model with external data, all of them named from one folder, and that folder.

    Onnxruntime takes one folder for all data of a model, and they may lie in two: the model's and that of temporary
    files. So it is the root of the file system.

    Raises
    ------
    ModelError
        If `folder` is not given.
    """
    if folder is None:
        raise ModelError("It has external data, and nothing says where they lie. Load it by its path.")
    result = ModelProto()
    result.CopyFrom(model)
    root = Path(folder.absolute().anchor)
    for _, tensor in all_tensors(result):
        for entry in tensor.external_data:
            if entry.key == "location" and is_external(tensor):
                entry.value = (folder / entry.value).absolute().relative_to(root).as_posix()
    return result, str(root)


def data_files(model: ModelProto, folder: Path) -> list[Path]:
    """The files in which a model's external data lie, each once."""
    found = {folder / location_of(tensor) for _, tensor in all_tensors(model) if is_external(tensor)}
    return sorted({path.resolve(): path for path in sorted(found)}.values())
