"""What the inputs of a model want, and whether an array is that.

The contract: every check that names, shapes and dtypes allow is made by `matched`, before data are read; what
only the values can tell (a NaN, an integer that does not fit) is found by `converted`, block by block. A
conversion loses nothing, but for the rounding of floats, and of integers too large for a float; these are the
caller's to report.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxdpp.errors import DataError
from onnxdpp.graph.arrays import Array
from onnxdpp.graph.walking import escaped, quoted

_DTYPES: dict[int, np.dtype[Any]] = {
    onnx.TensorProto.FLOAT: np.dtype(np.float32),
    onnx.TensorProto.DOUBLE: np.dtype(np.float64),
    onnx.TensorProto.FLOAT16: np.dtype(np.float16),
    onnx.TensorProto.INT8: np.dtype(np.int8),
    onnx.TensorProto.INT16: np.dtype(np.int16),
    onnx.TensorProto.INT32: np.dtype(np.int32),
    onnx.TensorProto.INT64: np.dtype(np.int64),
    onnx.TensorProto.UINT8: np.dtype(np.uint8),
    onnx.TensorProto.UINT16: np.dtype(np.uint16),
    onnx.TensorProto.UINT32: np.dtype(np.uint32),
    onnx.TensorProto.UINT64: np.dtype(np.uint64),
    onnx.TensorProto.BOOL: np.dtype(np.bool_),
}
# What exporters write for "any size", which says nothing about two dimensions being equal.
_ANONYMOUS = {"", "?", "None", "unk", "unknown", "-1"}

Shape = tuple[int | str | None, ...]


@dataclass(frozen=True)
class InputSpec:
    """One true input of a model, initializers excluded.

    Attributes
    ----------
    name : str
    dtype : np.dtype or None
        None for a type that cannot be fed: strings, bfloat16, sequences.
    shape : tuple or None
        Per dimension an int (fixed), a str (symbolic) or None (unknown). None as a whole: unknown rank.
    labels : bool
        Whether it is no input, but an array of labels that lies beside them in the data.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: Shape | None
    labels: bool = False

    @property
    def title(self) -> str:
        """What a message calls it."""
        return f"array {quoted(self.name)} (--labels)" if self.labels else f"input {quoted(self.name)}"

    @property
    def feed_dtype(self) -> np.dtype[Any]:
        """The dtype to feed; a DataError where there is none."""
        if self.dtype is None:
            raise DataError(f"Input {quoted(self.name)} cannot be fed from an array of numbers.")
        return self.dtype

    def __str__(self) -> str:
        """Return the line of the table of expected inputs: ``obs float32 (batch, 63)``."""
        dtype = "of a type that cannot be fed" if self.dtype is None else str(self.dtype)
        return f"{escaped(self.name)} {dtype} {shown(self.shape)}"


class BadValue(Exception):
    """A value that cannot be fed; `index` is where in the block, `reason` what is wrong with it."""

    def __init__(self, index: tuple[int, ...], reason: str) -> None:
        super().__init__(reason)
        self.index = index
        self.reason = reason


def input_specs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """Return the inputs that a run of the model needs, in order."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants.update(tensor.values.name for tensor in model.graph.sparse_initializer)
    return tuple(_spec(value) for value in model.graph.input if value.name not in constants)


def _spec(value: onnx.ValueInfoProto) -> InputSpec:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return InputSpec(value.name, _DTYPES.get(tensor.elem_type), None)
    shape: list[int | str | None] = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            shape.append(dim.dim_value)
        else:
            shape.append(None if dim.dim_param in _ANONYMOUS else dim.dim_param)
    return InputSpec(value.name, _DTYPES.get(tensor.elem_type), tuple(shape))


def shaped_alike(model: onnx.ModelProto, name: str) -> frozenset[str]:
    """Return the outputs declared with the axes of an input: as many, fixed where it is, to the same numbers.

    Shapes of arrays do not tell: a row of scores may happen to be as long as a row of tokens.
    """
    specs = [_spec(value) for value in (*model.graph.input, *model.graph.output)]
    wanted = next((_fixed(spec) for spec in specs if spec.name == name), None)
    outputs = specs[len(model.graph.input) :]
    return frozenset(spec.name for spec in outputs if wanted is not None and _fixed(spec) == wanted)


def _fixed(spec: InputSpec) -> tuple[int | None, ...] | None:
    return None if spec.shape is None else tuple(dim if isinstance(dim, int) else None for dim in spec.shape)


def row_axis(inputs: Sequence[InputSpec]) -> tuple[bool, int | None]:
    """Tell whether the first axis of every input counts rows, and the model's fixed batch, if any.

    It does when all first dimensions are free, or all fixed to one number; not when they differ (a
    recurrent state ``(2, batch, 128)``), nor when the symbol of a first dimension names a later one too
    (``(nodes, nodes)`` of a graph). An unknown rank is taken for rows.

    Returns
    -------
    row_wise : bool
    batch : int or None
        The rows of one run where the model fixes them.
    """
    shapes = [spec.shape for spec in inputs if spec.shape is not None]
    if not all(shapes):
        return False, None
    first = {shape[0] if isinstance(shape[0], int) else None for shape in shapes}
    symbols = {shape[0] for shape in shapes if isinstance(shape[0], str)}
    later = {dim for shape in shapes for dim in shape[1:]}
    if len(first) > 1 or symbols & later or first == {0}:
        return False, None
    return True, first.pop() if first else None


def matched(
    arrays: Mapping[str, Array], inputs: Sequence[InputSpec], where: str, *, row_wise: bool
) -> dict[str, Array]:
    """Give every input its array.

    Parameters
    ----------
    arrays : mapping
        By name. One array under any name will do where the model has one input.
    where : str
        What holds the arrays, for messages.
    row_wise : bool
        The first axis counts rows; it may have any length, the same for all inputs.

    Raises
    ------
    DataError
        An input without an array, an array without an input, a shape or dtype that does not fit, no rows.
    """
    found = _named(arrays, inputs, where)
    for spec in inputs:
        _check_dtype(found[spec.name].dtype, spec, where)
        _check_shape(found[spec.name].shape, spec, where, expected(inputs), row_wise=row_wise)
    if row_wise:
        counts = {name: array.shape[0] for name, array in found.items()}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{escaped(name)} {count}" for name, count in counts.items())
            raise DataError(f"{where} has different numbers of rows: {listed}. Every input needs as many.")
    return found


def expected(inputs: Sequence[InputSpec]) -> str:
    """Return the table of expected inputs as the sentence that ends a message."""
    return f"Expected: {'; '.join(map(str, inputs))}."


def shown(shape: Shape | None) -> str:
    """Write a shape as ``(batch, 63)``, with ``?`` for an unknown dimension."""
    if shape is None:
        return "(any shape)"
    dims = ["?" if dim is None else escaped(str(dim)) for dim in shape]
    return f"({dims[0]},)" if len(dims) == 1 else f"({', '.join(dims)})"


def rounds(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    """Tell whether floats of one dtype lose digits in the other."""
    return source.kind == target.kind == "f" and source.itemsize > target.itemsize


def converted(block: NDArray[Any], dtype: np.dtype[Any]) -> tuple[NDArray[Any], bool]:
    """Convert a block of values to the dtype of an input.

    Parameters
    ----------
    block : array of any shape, not empty
        Of a dtype that `matched` has let through.
    dtype : np.dtype
        In native byte order.

    Returns
    -------
    values : array of the same shape
        In C order; `block` itself where nothing had to change.
    rounded : bool
        The block holds integers that the float dtype cannot hold exactly.

    Raises
    ------
    BadValue
        NaN or infinite, before or after the conversion; an integer out of range.
    """
    rounded = False
    if block.dtype.kind in "iu":
        if dtype.kind == "f":
            exact = 2 ** (np.finfo(dtype).nmant + 1)
            wide = np.iinfo(block.dtype).max > exact
            rounded = wide and (int(block.max()) > exact or int(block.min()) < -exact)
        elif not np.can_cast(block.dtype, dtype):
            _check_range(block, dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        values = block.astype(dtype, order="C", copy=False)
    if dtype.kind == "f":
        _check_finite(block, values)
    return values, rounded


def _check_range(block: NDArray[Any], dtype: np.dtype[Any]) -> None:
    low, high = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    if int(block.min()) < low or int(block.max()) > high:
        first = ((block < low) | (block > high)).argmax()
        value = block.flat[first]
        raise BadValue(_index(first, block), f"holds {value}, which does not fit {dtype} ({low} to {high})")


def _check_finite(block: NDArray[Any], values: NDArray[Any]) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        first = finite.argmin()
        value = block.flat[first]
        overflow = f", too large for {values.dtype}" if np.isfinite(value) else ""
        raise BadValue(_index(first, block), f"holds {value}{overflow}")


def _index(position: np.intp, block: NDArray[Any]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(position, block.shape))


def _named(arrays: Mapping[str, Array], inputs: Sequence[InputSpec], where: str) -> dict[str, Array]:
    if len(inputs) == len(arrays) == 1:
        return {inputs[0].name: next(iter(arrays.values()))}
    extra = [name for name in arrays if all(name != spec.name for spec in inputs)]
    for spec in inputs:
        if spec.name not in arrays:
            has = ", ".join(f"{quoted(name)}" for name in list(arrays)[:10]) or "none"
            hint = _did_you_mean(spec.name, extra)
            if spec.labels:
                raise DataError(f"{where} has no {spec.title}; it has {has}.{hint}")
            raise DataError(f"{where} has no array for {spec.title}; it has {has}.{hint} {expected(inputs)}")
    if extra:
        hint = _did_you_mean(extra[0], [spec.name for spec in inputs]) if len(inputs) > 1 else ""
        if not hint and _may_be_labels(arrays[extra[0]], arrays[inputs[0].name]):
            hint = f" If it holds the classes of the rows of --data, add --labels {escaped(extra[0])}."
        raise DataError(
            f"{where} has an array {quoted(extra[0])}, which is no input of the model.{hint} {expected(inputs)}"
        )
    return {spec.name: arrays[spec.name] for spec in inputs}


def _may_be_labels(array: Array, rows: Array) -> bool:
    """Whether an array has a whole number for each row."""
    return array.dtype.kind in "iu" and len(array.shape) == 1 and array.shape[0] == (rows.shape or (None,))[0]


def _did_you_mean(name: str, others: Sequence[str]) -> str:
    folded = {other[:200].casefold(): other for other in others}
    nearest = difflib.get_close_matches(name[:200].casefold(), folded, n=1)
    return f" Did you mean {quoted(folded[nearest[0]])}?" if nearest else ""


def _check_dtype(dtype: np.dtype[Any], spec: InputSpec, where: str) -> None:
    if dtype.kind not in "biuf" or (dtype.kind == "f" and spec.feed_dtype.kind != "f"):
        raise DataError(
            f"{where}: {spec.title} wants {spec.dtype}, the array is {escaped(str(dtype))}. Convert it before saving."
        )


def _check_shape(shape: tuple[int, ...], spec: InputSpec, where: str, table: str, *, row_wise: bool) -> None:
    wanted = (None,) * len(shape) if spec.shape is None else spec.shape
    # The rows of a file are cut into batches, so even a fixed batch says nothing about their number.
    fits = _fits(shape, (None, *wanted[1:]) if row_wise else wanted)
    if not fits or (row_wise and not shape):
        raise DataError(
            f"{where}: {spec.title} wants shape {shown(spec.shape)}, "
            f"the array has {escaped(str(shape))}.{_shape_hint(shape, wanted)} {table}"
        )
    if row_wise and shape[0] == 0:
        raise DataError(f"{where} has no rows for {spec.title}.")
    if math.prod(shape) == 0:
        raise DataError(f"{where}: {spec.title} is empty: shape {escaped(str(shape))}.")


def _fits(shape: Sequence[int], wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(
        size == dim or not isinstance(dim, int) for size, dim in zip(shape, wanted, strict=True)
    )


def _shape_hint(shape: tuple[int, ...], wanted: Shape) -> str:
    row = [dim for dim in wanted[1:] if isinstance(dim, int)]
    if len(shape) == len(wanted) == 4:
        for axes in ((0, 3, 1, 2), (0, 2, 3, 1)):
            if _fits([shape[axis] for axis in axes[1:]], wanted[1:]):
                return f" Its channels stand elsewhere: transpose it with {axes}."
    if len(shape) == len(wanted) - 1 and _fits(shape, wanted[1:]):
        return " Its first axis is missing: array[numpy.newaxis] is one row."
    if shape and len(row) == len(wanted) - 1 and math.prod(shape[1:]) == math.prod(row):
        return f" Its rows have the right size: reshape it to {shown((shape[0], *row))}."
    return ""
