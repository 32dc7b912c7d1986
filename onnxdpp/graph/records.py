"""What a packed file says of its packing: one entry of ``metadata_props``, JSON, read as the word of a stranger.

``{"version": 1, "shared": S, "tensors": [{"name", "form", "dtype", "shape", "stem", "narrow"} or, where the form is
"sparse", {"name", "form", "dtype", "shape", "position"}, ...]}``. The values stand in the file where the tensor stood,
so that only a sparse one, which stands elsewhere, needs its position.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnxdpp.errors import ModelError
from onnxdpp.graph.codes import CODES
from onnxdpp.graph.walking import quoted

KEY = "onnxdpp.storage"
_VERSION = 1
_LONGEST = 2**24  # characters
_MAX_RANK = 64
_MAX_ELEMENTS = 2**40

TYPES = {
    np.dtype(helper.tensor_dtype_to_np_dtype(kind)).name: kind
    for kind in (
        *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16),
        *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
        *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
    )
}
"""Element types that are packed, by their names in numpy."""


@dataclass(frozen=True)
class Record:
    """How to give back one tensor.

    Attributes
    ----------
    name : str
    form : {"packed", "gaps", "sparse"}
    dtype : str
        One of `TYPES`.
    shape : tuple of int
    stem : str
        What the names of its parts begin with; empty for a sparse one.
    narrow : bool
        Whether its values are stored as float16 though it is of a wider type.
    position : int
        Of a sparse one: where among the initializers it stood; else 0.
    """

    name: str
    form: str
    dtype: str
    shape: tuple[int, ...]
    stem: str = ""
    narrow: bool = False
    position: int = 0

    @property
    def size(self) -> int:
        """How many entries the tensor has."""
        return math.prod(self.shape)

    @property
    def data_type(self) -> int:
        """Its element type, as ONNX numbers them."""
        return TYPES[self.dtype]

    @property
    def numpy_type(self) -> np.dtype[Any]:
        """Its element type in numpy."""
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.data_type))

    def as_json(self) -> str:
        """Compact JSON."""
        entry: dict[str, Any] = {"name": self.name, "form": self.form, "dtype": self.dtype, "shape": self.shape}
        entry |= {"position": self.position} if self.form == "sparse" else {"stem": self.stem, "narrow": self.narrow}
        return json.dumps(entry, separators=(",", ":"))


def add_records(model: ModelProto, shared: str, records: Sequence[Record]) -> None:
    """Let the metadata of `model` say what was packed in it."""
    listed = ",".join(record.as_json() for record in records)
    text = f'{{"version":{_VERSION},"shared":{json.dumps(shared)},"tensors":[{listed}]}}'
    model.metadata_props.add(key=KEY, value=text)


def has_records(model: ModelProto) -> bool:
    """Whether the metadata of `model` say that something was packed in it."""
    return any(entry.key == KEY for entry in model.metadata_props)


def take_records(model: ModelProto) -> tuple[str, list[Record]]:
    """Remove from the metadata of `model` what they say of its packing, and return it.

    Returns
    -------
    shared : str
        What the names of shared constants begin with.
    records : list of Record
        Of sound types and sizes, each name once; whether the model fits them is not looked at.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    texts = [entry.value for entry in model.metadata_props if entry.key == KEY]
    for number in reversed([n for n, entry in enumerate(model.metadata_props) if entry.key == KEY]):
        del model.metadata_props[number]
    try:
        if len(texts) != 1:
            raise ValueError(f"it is there {len(texts)} times")
        return _parsed(texts[0])
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ModelError(
            f"The metadata entry {quoted(KEY)} cannot be read: {reason}. Remove it to take the model as it stands."
        ) from error


def _parsed(text: str) -> tuple[str, list[Record]]:
    if len(text) > _LONGEST:
        raise ValueError(f"it has {len(text)} characters, {_LONGEST} is the limit")
    try:
        whole = json.loads(text)
    except ValueError as error:
        raise ValueError("it is no JSON") from error
    if not isinstance(whole, dict) or whole.get("version") != _VERSION:
        raise ValueError(f"it is not of version {_VERSION}, the one known here")
    shared, tensors = whole.get("shared"), whole.get("tensors")
    if not _is_text(shared) or not isinstance(tensors, list):
        raise ValueError("it lists no tensors")
    records = [_record(entry) for entry in tensors]
    names = [record.name for record in records]
    if len(set(names)) != len(names):
        raise ValueError("it lists a tensor twice")
    return shared, records


def _record(entry: Any) -> Record:
    if not isinstance(entry, dict) or not _is_text(name := entry.get("name")):
        raise ValueError("it lists a tensor without a name")
    form, dtype, shape = entry.get("form"), entry.get("dtype"), entry.get("shape")
    if form not in (*CODES, "sparse"):
        raise ValueError(f"the form of {quoted(name)} is unknown")
    if not isinstance(dtype, str) or dtype not in TYPES:
        raise ValueError(f"the type of {quoted(name)} is unknown")
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(type(n) is int and n > 0 for n in shape):
        raise ValueError(f"the shape of {quoted(name)} is impossible")
    if math.prod(shape) >= _MAX_ELEMENTS:
        raise ValueError(f"the shape of {quoted(name)} is impossible")
    if form == "sparse":
        position = entry.get("position")
        if type(position) is not int or position < 0:
            raise ValueError(f"the position of {quoted(name)} is impossible")
        return Record(name, form, dtype, tuple(shape), position=position)
    stem, narrow = entry.get("stem"), entry.get("narrow")
    if not _is_text(stem) or type(narrow) is not bool:
        raise ValueError(f"the parts of {quoted(name)} are not named")
    if narrow and dtype not in ("float32", "float64"):
        raise ValueError(f"{quoted(name)} is {dtype}, which float16 does not narrow")
    return Record(name, form, dtype, tuple(shape), stem, narrow)


def _is_text(value: Any) -> TypeGuard[str]:
    """Whether it is a name that protobuf can hold: JSON may spell halves of surrogate pairs."""
    return isinstance(value, str) and bool(value) and not any(0xD800 <= ord(letter) < 0xE000 for letter in value)
