"""Two codes for an array with many zeros: a mask, or distances, beside the entries that are kept.

Entries count as zero where all their bits are: -0.0 is kept. Let N be the number of entries in C order, k of them kept.

- *packed*: a bitmask, one bit per entry, the first entry in the highest bit of the first byte; and one zero followed by
  the kept values. Entry i is ``values[mask[i] * (mask[0] + ... + mask[i])]``.
- *gaps*: the distance from each kept entry to the one before it (from entry 0 for the first) in one byte, or two where
  that is smaller; and the kept values. A distance that does not fit is walked in steps whose values are zeros. Below
  one kept entry in eight it is the smaller of both.
"""

import numpy as np
from numpy.typing import NDArray

from onnxdpp.graph.attributes import Array

CODES = ("packed", "gaps")

Bits = Array
"""Entries as unsigned integers of their size."""


def bits_of(array: Array) -> Bits:
    """The entries of an array in C order, (N,), as unsigned integers of their size."""
    return np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")


def coded(form: str, entries: Bits) -> tuple[Array, Bits]:
    """The codes and the values that stand for N entries.

    Parameters
    ----------
    form : {"packed", "gaps"}
    entries : (N,) unsigned integer array

    Returns
    -------
    codes : uint8 array
        ``packed``: the bitmask, (ceil(N / 8),); ``gaps``: the distances, uint8 or uint16.
    values : unsigned integer array, of the type of `entries`
        ``packed``: (k + 1,), the first zero; ``gaps``: as many as codes, one at least.
    """
    kept = entries != 0
    if form == "packed":
        return np.packbits(kept), np.concatenate([np.zeros(1, entries.dtype), entries[kept]])
    gaps = np.diff(np.flatnonzero(kept), prepend=0)
    if not len(gaps):
        return np.zeros(1, np.uint8), np.zeros(1, entries.dtype)
    steps, kind = _steps(gaps, entries.dtype.itemsize)
    ends = np.cumsum(steps) - 1
    codes = np.full(ends[-1] + 1, np.iinfo(kind).max, kind)
    codes[ends] = gaps - (steps - 1) * np.iinfo(kind).max
    values = np.zeros(len(codes), entries.dtype)
    values[ends] = entries[kept]
    return codes, values


def coded_bytes(form: str, entries: Bits, width: int) -> int:
    """Bytes that codes and values take where a value takes `width` bytes; of gaps in the type that `coded` takes."""
    kept = entries != 0
    if form == "packed":
        return -(-len(entries) // 8) + (int(np.count_nonzero(kept)) + 1) * width
    gaps = np.diff(np.flatnonzero(kept), prepend=0)
    if not len(gaps):
        return 1 + width
    steps, kind = _steps(gaps, entries.dtype.itemsize)
    return int(steps.sum()) * (np.dtype(kind).itemsize + width)


def _steps(gaps: NDArray[np.intp], width: int) -> tuple[NDArray[np.intp], type[np.uint8] | type[np.uint16]]:
    """How many steps each distance takes, and the type of a step with which codes and values are smallest."""
    fine = np.maximum(-(-gaps // 255), 1)
    coarse = np.maximum(-(-gaps // 65535), 1)
    if int(fine.sum()) * (1 + width) <= int(coarse.sum()) * (2 + width):
        return fine, np.uint8
    return coarse, np.uint16


def decoded(form: str, codes: Array, values: Bits, size: int) -> Bits:
    """The N = `size` entries that codes and values stand for: what the operators compute.

    Raises
    ------
    ValueError
        If they fit neither each other nor `size`; the message is the reason.
    """
    result = np.zeros(size, values.dtype)
    if form == "packed":
        if len(codes) != -(-size // 8):
            raise ValueError(f"a mask of {size} entries has {-(-size // 8)} bytes, not {len(codes)}")
        kept = np.unpackbits(codes, count=size).view(bool)
        if len(values) != (count := int(np.count_nonzero(kept))) + 1:
            raise ValueError(f"its mask asks for {count} values after the zero, there are {len(values)} in all")
        if values[0]:
            raise ValueError("its values do not begin with zero")
        result[kept] = values[1:]
        return result
    if not len(codes) or len(codes) != len(values):
        raise ValueError(f"it has {len(codes)} distances for {len(values)} values")
    places = np.cumsum(codes, dtype=np.int64)
    if places[-1] >= size:
        raise ValueError(f"its distances lead to entry {places[-1]} of {size}")
    if not codes[1:].all():
        raise ValueError("one of its distances is zero, so that two values have one place")
    result[places] = values
    return result
