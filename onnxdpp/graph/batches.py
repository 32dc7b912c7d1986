"""Calibration data as named input batches, streamed.

The contract: `open_batches` checks all that names, shapes and dtypes can tell before a value is read, and
gives `Batches`, which yields the same batches in the same order on every pass and holds one of them at a
time. Rows are cut into batches without regard to the files that hold them, so the batches, put together,
are the rows in their order whatever the batch size (only rows of another shape begin a new batch). Values
are checked as they pass: a NaN or an integer out of range ends the pass with a DataError that names file,
input and row. A validation of its own, which would read everything once more, is not made.

Forms of data: an .npz file with one array per input name (under any name where the model has one input), a
.npy file, a folder of such files in the order of their names (as text: ``10.npz`` before ``9.npz``),
``random:N``, a dict of arrays, an iterable of dicts of arrays (read into a list at once, so that it can be
passed over again).

Where the first axis of every input counts rows, all forms mean rows (*row-wise*). Otherwise, as for a model
with a scalar or a recurrent state among its inputs, every file of a folder and every dict is one run of the
model, arrays in the shapes that the model declares, and what is said of rows below holds for runs.
"""

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxdpp.errors import DataError, UsageError
from onnxdpp.graph.arrays import LARGEST_BLOCK, Take
from onnxdpp.graph.inputs import BadValue, InputSpec, converted, expected, input_specs, row_axis
from onnxdpp.graph.picks import HELD_OUT, Evenly, Fifth, OtherFour, Pick, border_after, places
from onnxdpp.graph.sources import FREE_DIMENSION, Part, Source, random_parts, stored_parts
from onnxdpp.graph.walking import quoted

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "FREE_DIMENSION",
    "HELD_OUT",
    "Batch",
    "Batches",
    "InputSpec",
    "Source",
    "input_specs",
    "open_batches",
]

DEFAULT_BATCH_SIZE = 256
# A batch holds no more bytes than this where the user names no size: what is computed of images is large.
_DEFAULT_BATCH_BYTES = 1 << 23
# Small batches are cut out of blocks of about this many bytes: one row costs 30 us to read by itself.
_READ_AHEAD = 1 << 20


@dataclass(frozen=True)
class Batch:
    """Inputs of one run of the model.

    Attributes
    ----------
    feeds : dict of arrays
        By input name, in the model's dtype and C order; read-only, or views of the caller's arrays.
    first : int
        Index of the first row in the data as used, after ``max_rows``.
    rows : int
        Rows of the batch; 1 where the data are runs.
    """

    feeds: dict[str, NDArray[Any]]
    first: int
    rows: int


def rows_held_out(entry: NDArray[np.intp], count: int, batch: Batch) -> NDArray[np.bool_]:
    """Which entries along the first axis of a value are held out: those of every fifth calibration row, or run.

    Parameters
    ----------
    entry : (r,) integer array
    count : int
        Entries along that axis: as many as the batch has rows, or by a whole factor more (time, folded into it). Where
        it counts something else (time alone), entries are told apart by that.
    batch : Batch
    """
    each = max(1, count // batch.rows)
    held: NDArray[np.bool_] = (batch.first + entry // each) % HELD_OUT == HELD_OUT - 1
    return held


class Batches:
    """Batches of calibration data; every pass yields the same ones in the same order.

    Made by `open_batches`.

    Attributes
    ----------
    rows : int
        Rows, or runs, that one pass yields.
    row_wise : bool
        The first axis of every input counts rows; otherwise every batch is one run.
    random : bool
        The data are drawn, not read.
    fixed : bool
        The model takes batches of one size only, or runs.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        inputs: Sequence[InputSpec],
        *,
        row_wise: bool,
        random: bool,
        size: int,
        fixed: bool,
        picks: Sequence[Pick],
        notices: Sequence[str],
    ) -> None:
        self.row_wise = row_wise
        self.random = random
        self.fixed = fixed or not row_wise
        self._parts = parts
        self._inputs = inputs
        self._fixed_size = fixed
        self._dtypes = {spec.name: spec.feed_dtype for spec in inputs}
        self._size = size
        row_bytes = max(part.row_bytes for part in parts) if row_wise else 1
        self._block = size * max(1, _READ_AHEAD // (size * row_bytes))
        self._starts = [0, *accumulate(part.rows if row_wise else 1 for part in parts)]
        self._picks = tuple(picks)
        self._used = picks[-1].count if picks else self._starts[-1]
        self._sections = self._cut_sections(fixed)
        self.rows = sum(stop - first for first, stop in self._sections)
        if not self.rows:
            raise DataError(f"The data have {self._used} rows, too few: the model takes {size} at a time.")
        self._notices = tuple(notices)
        if self.rows < self._used:
            left = self._used - self.rows
            self._notices += (f"{left} of {self._used} rows are left out: the model takes {size} at a time.",)
        self._rounded: set[str] = set()
        self._equal: tuple[str, ...] | None = None

    @property
    def notices(self) -> tuple[str, ...]:
        """One line each on what was done to the data: casts, rows left out, files passed over, equal rows.

        Complete after the first full pass, since two of them take the values to tell: integers that a float
        dtype rounds, and an input whose rows are all equal.
        """
        rounded = [
            f"Input {quoted(name)}: some integers are too large for {dtype} and are rounded."
            for name, dtype in self._dtypes.items()
            if name in self._rounded
        ]
        equal = [f"Input {quoted(name)}: all rows are equal." for name in self._equal or ()]
        return (*self._notices, *rounded, *equal)

    def __iter__(self) -> Iterator[Batch]:
        return self._row_batches() if self.row_wise else self._runs()

    def thinned(self, rows: int) -> "Batches":
        """At most so many of these rows (at least a batch, where its size is fixed), evenly spaced.

        `self` where it has no more, or where no whole batch of one shape would be left.
        """
        if self.rows <= rows:
            return self
        few = max(rows, self._size) if self._fixed_size else rows
        try:
            return self._of(Evenly(few, self._used))
        except DataError:
            return self

    def parted(self, instead: str) -> tuple["Batches", "Batches"]:
        """All rows but every fifth, and every fifth: to be fitted, and to be judged on.

        Parameters
        ----------
        instead : str
            What else the user may give, for the message.

        Raises
        ------
        UsageError
            If a part would hold no row, or, where the model fixes the size of batches, no whole batch.
        """
        try:
            return self._of(OtherFour(self._used)), self._of(Fifth(self._used))
        except DataError:
            size = self._size if self._fixed_size else 1
            what = ("rows" if self.row_wise else "runs") + (f", {size} at a time" if size > 1 else "")
            of_a_shape = " of one shape" if self._used >= HELD_OUT * size else ""
            raise UsageError(
                f"Of {self._used} calibration {what}, none can be held out to judge on. Give {HELD_OUT * size} or "
                f"more{of_a_shape}, or {instead}."
            ) from None

    def _of(self, pick: Pick) -> "Batches":
        """Some of these rows. Raises DataError if that is none, or no whole batch."""
        return Batches(
            self._parts, self._inputs, row_wise=self.row_wise, random=self.random, size=self._size,
            fixed=self._fixed_size, picks=(*self._picks, pick), notices=(),
        )  # fmt: skip

    def _cut_sections(self, fixed: bool) -> list[tuple[int, int]]:
        """Bounds, in used rows, between which all rows have the same shapes; no batch spans two sections."""
        shapes = [part.row_shapes if self.row_wise else () for part in self._parts]
        changes = (self._starts[i] for i in range(1, len(shapes)) if shapes[i] != shapes[i - 1])
        borders = [border_after(self._picks, border) for border in (0, *changes, self._starts[-1])]
        return [(a, b - (b - a) % self._size if fixed else b) for a, b in pairwise(borders)]

    def _source_rows(self, first: int, stop: int) -> NDArray[np.int64]:
        return places(self._picks, np.arange(first, stop, dtype=np.int64))

    def _runs(self) -> Iterator[Batch]:
        for run, index in enumerate(self._source_rows(0, self.rows)):
            part = self._parts[index]
            feeds = {name: self._fed(part, name, array.whole(), None) for name, array in part.arrays.items()}
            yield Batch(feeds, run, 1)

    def _row_batches(self) -> Iterator[Batch]:
        equal = _EqualRows()
        with contextlib.ExitStack() as files:
            take = self._reader(files)
            for section, end in self._sections:
                for start in range(section, end, self._block):
                    stop = min(start + self._block, end)
                    block = take(self._source_rows(start, stop))
                    equal.update(block)
                    for first in range(start, stop, self._size):
                        rows = slice(first - start, min(first + self._size, stop) - start)
                        feeds = {name: values[rows] for name, values in block.items()}
                        yield Batch(feeds, first, rows.stop - rows.start)
        if self.rows > 1:
            # Masks and token types are often the same in all rows: integers count only when nothing varies.
            nothing_varies = len(equal.names) == len(self._dtypes)
            self._equal = tuple(n for n in equal.names if nothing_varies or self._dtypes[n].kind == "f")

    def _reader(self, files: contextlib.ExitStack) -> Callable[[NDArray[np.int64]], dict[str, NDArray[Any]]]:
        """Return what reads increasing rows, opening each part when its turn comes and closing it after."""
        opened: tuple[int, dict[str, Take]] = (-1, {})

        def take(rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
            nonlocal opened
            pieces: dict[str, list[NDArray[Any]]] = {name: [] for name in self._dtypes}
            while rows.size:
                index = bisect_right(self._starts, rows[0]) - 1
                part, start = self._parts[index], self._starts[index]
                if index != opened[0]:
                    files.close()
                    opened = index, {n: files.enter_context(a.reading()) for n, a in part.arrays.items()}
                inside = int(np.searchsorted(rows, self._starts[index + 1]))
                local = rows[:inside] - start
                for name, taken in opened[1].items():
                    pieces[name].append(self._fed(part, name, taken(local), local))
                rows = rows[inside:]
            return {name: found[0] if len(found) == 1 else np.concatenate(found) for name, found in pieces.items()}

        return take

    def _fed(self, part: Part, name: str, block: NDArray[Any], rows: NDArray[np.int64] | None) -> NDArray[Any]:
        try:
            values, rounded = converted(block, self._dtypes[name])
        except BadValue as bad:
            place = f"index {bad.index}" if rows is None else f"row {rows[bad.index[0]]} (counted from 0)"
            raise DataError(
                f"{part.where}: input {quoted(name)}, {place}, {bad.reason}. {expected(self._inputs)}"
            ) from bad
        if rounded:
            self._rounded.add(name)
        return values


class _EqualRows:
    """The inputs of which all rows so far are equal, each with that row."""

    def __init__(self) -> None:
        self._rows: dict[str, NDArray[Any]] | None = None

    def update(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        if self._rows is None:
            self._rows = {name: values[0].copy() for name, values in feeds.items()}
        self._rows = {name: row for name, row in self._rows.items() if _all_equal(feeds[name], row)}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._rows or ())


def _all_equal(values: NDArray[Any], row: NDArray[Any]) -> bool:
    return values.shape[1:] == row.shape and bool((values == row).all())


def open_batches(
    source: Source,
    inputs: Sequence[InputSpec],
    *,
    batch_size: int | None = None,
    max_rows: int | None = None,
    seed: int = 0,
) -> Batches:
    """Open calibration data for the inputs of a model.

    Parameters
    ----------
    source : path, ``"random:N"``, mapping of arrays, or iterable of such mappings
        The forms are in the header of this module. ``random:N`` draws N rows: standard normal floats,
        integers and booleans 0 or 1; what the model leaves free, but for the row axis, becomes 32
        (`FREE_DIMENSION`). The rows do not depend on the batch size.
    inputs : sequence of InputSpec
        From `input_specs`.
    batch_size : int, optional
        Rows of a batch; by default what the model fixes, else 256 (`DEFAULT_BATCH_SIZE`), or as many as 8 MiB hold.
    max_rows : int, optional
        Take only row ``i * R // max_rows`` of the R rows, for ``i < max_rows``: files are often sorted by
        class. Of random rows, the first ones.
    seed : int
        Of the random rows.

    Returns
    -------
    Batches

    Raises
    ------
    UsageError
        A batch size that the model does not take; a number below 1; a malformed ``random:N``.
    DataError
        What cannot be read or does not fit the model; fewer rows than the model's fixed batch.
    """
    for option, value in (("batch size", batch_size), ("number of rows", max_rows)):
        if value is not None and value < 1:
            raise UsageError(f"The {option} is {value}. It must be at least 1.")
    if not inputs:
        raise DataError("The model has no inputs, so there is nothing to feed data to.")
    if any(spec.dtype is None for spec in inputs):
        raise DataError(f"The model has inputs that cannot be fed from arrays of numbers. {expected(inputs)}")
    row_wise, fixed = row_axis(inputs)
    wanted = _batch_size(batch_size, inputs, row_wise, fixed)
    random = isinstance(source, str) and source.startswith("random:")
    if random:
        parts = random_parts(str(source), inputs, row_wise=row_wise, seed=seed, max_rows=max_rows)
        notices: list[str] = []
    else:
        parts, notices = stored_parts(source, inputs, row_wise=row_wise)
    largest = max((part.row_bytes for part in parts), default=1) if row_wise else 1
    size = wanted or max(1, min(DEFAULT_BATCH_SIZE, _DEFAULT_BATCH_BYTES // max(1, largest)))
    _check_size(parts, inputs, size, row_wise)
    total = sum(part.rows if row_wise else 1 for part in parts)
    picks = [] if max_rows is None or max_rows >= total else [Evenly(max_rows, total)]
    return Batches(
        parts,
        inputs,
        row_wise=row_wise,
        random=random,
        size=size,
        fixed=fixed is not None,
        picks=picks,
        notices=notices,
    )


def _batch_size(wanted: int | None, inputs: Sequence[InputSpec], row_wise: bool, fixed: int | None) -> int | None:
    """Rows of a batch as the model or the user fixes them."""
    if not row_wise and wanted is not None:
        raise UsageError(
            f"The batch size is {wanted}, but not all inputs of the model have a row axis. {expected(inputs)}"
        )
    if fixed is not None and wanted not in (None, fixed):
        raise UsageError(f"The batch size is {wanted}, but the model fixes it to {fixed}. {expected(inputs)}")
    return fixed or wanted


def _check_size(parts: Sequence[Part], inputs: Sequence[InputSpec], size: int, row_wise: bool) -> None:
    """Refuse batches that no machine should be asked to hold."""
    hint = " Lower the batch size." if row_wise else ""
    for part in parts:
        for spec in inputs:
            array = part.arrays[spec.name]
            shape = (min(size, array.shape[0]), *array.shape[1:]) if row_wise else array.shape
            taken = prod(shape) * max(array.dtype.itemsize, spec.feed_dtype.itemsize)
            if taken > LARGEST_BLOCK:
                raise DataError(
                    f"{part.where}: one batch of input {quoted(spec.name)} would take "
                    f"{taken / 2**30:.1f} GiB, more than {LARGEST_BLOCK >> 30}.{hint}"
                )
