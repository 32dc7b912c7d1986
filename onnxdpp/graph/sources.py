"""The forms of calibration data, each turned into parts: arrays for all inputs that belong together.

The contract: a part is what one file, one dict or one random run holds; names, shapes, dtypes and row
counts are checked here, against the model's inputs, and no value is read.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from onnxdpp.errors import DataError, UsageError
from onnxdpp.graph.arrayfiles import npy_array, npz_arrays
from onnxdpp.graph.arrays import Array, HeldArray, RandomArray, located, translated
from onnxdpp.graph.inputs import InputSpec, expected, matched, rounds
from onnxdpp.graph.walking import escaped, quoted

# What random data put for a dimension that the model leaves free.
FREE_DIMENSION = 32

Source = str | os.PathLike[str] | Mapping[str, ArrayLike] | Iterable[Mapping[str, ArrayLike]]


@dataclass(frozen=True)
class Part:
    """Arrays of all inputs that belong together: those of one file, one dict or one random run."""

    where: str
    arrays: dict[str, Array]

    @property
    def rows(self) -> int:
        """Length of the first axis, where that counts rows."""
        return next(iter(self.arrays.values())).shape[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of all inputs, as stored."""
        return sum(prod(array.shape[1:]) * array.dtype.itemsize for array in self.arrays.values())

    @property
    def row_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of one row of each input."""
        return tuple(array.shape[1:] for array in self.arrays.values())


def random_parts(
    source: str, inputs: Sequence[InputSpec], *, row_wise: bool, seed: int, max_rows: int | None
) -> list[Part]:
    """Return the part, or one per run, of ``random:N`` data; of more than `max_rows` rows the first ones.

    Raises
    ------
    UsageError
        Not ``random:N`` with a sensible N; a negative seed.
    DataError
        An input of unknown rank.
    """
    count = source.removeprefix("random:")
    if not (count.isascii() and count.isdigit() and len(count) < 10 and int(count) > 0):
        raise UsageError(f"{quoted(source)} is not random:N with N from 1 to 999999999.")
    if seed < 0:
        raise UsageError(f"The seed is {seed}. It must not be negative.")
    rows = min(int(count), max_rows or int(count))

    def array(position: int, spec: InputSpec, run: int) -> Array:
        if spec.shape is None:
            raise DataError(f"Input {quoted(spec.name)} has no declared shape, so none can be drawn for it.")
        shape = tuple(dim if isinstance(dim, int) else FREE_DIMENSION for dim in spec.shape)
        return RandomArray((rows, *shape[1:]) if row_wise else shape, spec.feed_dtype, (seed, position, run))

    return [
        Part(escaped(source), {spec.name: array(position, spec, run) for position, spec in enumerate(inputs)})
        for run in range(1 if row_wise else rows)
    ]


def stored_parts(source: Source, inputs: Sequence[InputSpec], *, row_wise: bool) -> tuple[list[Part], list[str]]:
    """Return the parts of data that exist, and notices about them.

    Raises
    ------
    DataError
        What cannot be read or does not fit the inputs.
    """
    notices: list[str] = []
    parts = [
        Part(where, matched(arrays, inputs, where, row_wise=row_wise))
        for where, arrays in _arrays(source, inputs, notices)
    ]
    for spec in inputs:
        dtypes = {part.arrays[spec.name].dtype for part in parts}
        if wider := sorted(str(dtype) for dtype in dtypes if rounds(dtype, spec.feed_dtype)):
            notices.append(f"Input {quoted(spec.name)}: {' and '.join(wider)} data are rounded to {spec.dtype}.")
    return parts, notices


def _arrays(
    source: Source, inputs: Sequence[InputSpec], notices: list[str]
) -> Iterator[tuple[str, Mapping[str, Array]]]:
    """Yield the arrays of each file or dict, with what messages call it."""
    if isinstance(source, str | os.PathLike):
        for path in _files(Path(source), notices):
            yield located(path), _file_arrays(path, inputs)
    elif isinstance(source, Mapping):
        yield "The dict of data", _held(source, "The dict of data")
    elif isinstance(source, Iterable) and not isinstance(source, np.ndarray):
        index = -1
        for index, item in enumerate(source):
            where = f"Item {index} of the data"
            if not isinstance(item, Mapping):
                raise DataError(f"{where} is of type {type(item).__name__}. It must be a dict of arrays by input name.")
            # What is no sequence may hand out the same buffer again and again.
            yield where, _held(item if isinstance(source, Sequence) else _copied(item), where)
        if index < 0:
            raise DataError("The data are an empty iterable.")
    else:
        raise DataError(
            f"The data are of type {type(source).__name__}. Give a path, a dict of arrays by input name, or such dicts."
        )


def _copied(item: Mapping[str, ArrayLike]) -> dict[str, ArrayLike]:
    return {name: np.array(part) if isinstance(part, np.ndarray) else part for name, part in item.items()}


def _files(path: Path, notices: list[str]) -> list[Path]:
    where = located(path)
    with translated(where):
        if not path.exists():
            raise DataError(f"{where} does not exist.")
        if not path.is_dir():
            return [path]
        names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    arrays = [name for name in names if name.lower().endswith((".npz", ".npy"))]
    if not arrays:
        raise DataError(f"The folder {where} has no .npz or .npy files in it.")
    others = [escaped(name) for name in names if not name.lower().endswith((".npz", ".npy"))]
    if others:
        listed = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        notices.append(f"{where}: {len(others)} of {len(names)} entries are not .npz or .npy, so not read: {listed}.")
    return [path / name for name in arrays]


def _file_arrays(path: Path, inputs: Sequence[InputSpec]) -> Mapping[str, Array]:
    where = located(path)
    if path.suffix.lower() == ".npz":
        return npz_arrays(path)
    if path.suffix.lower() != ".npy":
        raise DataError(f"{where} is neither an .npz nor a .npy file nor a folder of such files.")
    if len(inputs) > 1:
        raise DataError(
            f"{where} holds one array, but the model has {len(inputs)} inputs. "
            f"Save an .npz file with one array per input. {expected(inputs)}"
        )
    return {path.stem: npy_array(path)}


def _held(arrays: Mapping[str, ArrayLike], where: str) -> dict[str, Array]:
    held: dict[str, Array] = {}
    for name, values in arrays.items():
        try:
            held[str(name)] = HeldArray(np.asarray(values))
        except (ValueError, TypeError, RuntimeError) as error:
            raise DataError(f"{where}: {quoted(str(name))} cannot be made an array: {escaped(str(error))}.") from error
    return held
