"""Rows: from the values of one batch to what enters a projection, one observation per row.

Every position of every calibration row is an observation: all leading axes of a dense layer's input, every output
position of a convolution, with its patch. Patches are cut out a few thousand at a time and never stored. Of a
convolution, no more positions are taken than `PER_COLUMN` for each input: the same number from each calibration row,
at places that the seed draws.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxdpp.graph.attributes import Array
from onnxdpp.graph.calibration import Seen
from onnxdpp.graph.patches import Patch

PER_COLUMN = 32
CHUNK = 2048  # patches cut out at a time


@dataclass(frozen=True)
class Tap:
    """Where rows are observed.

    Attributes
    ----------
    value : str
    patch : Patch or None
        None: rows lie along the last axis.
    group, groups : int
        Of a convolution: the part of the channels that is read.
    """

    value: str
    patch: Patch | None = None
    group: int = 0
    groups: int = 1


@dataclass(frozen=True)
class Sampling:
    """How many positions of each calibration row are taken, and where.

    Attributes
    ----------
    limit : int
        Observations in all, over `rows`.
    rows : int
        Calibration rows.
    seed : int
    """

    limit: int
    rows: int
    seed: int

    def places(self, first: int, rows: int, positions: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Row and position of each observation among `rows` rows, the first of which is number `first` of all.

        Positions go through one random order, each row beginning where the one before it ended: so they are used
        equally often, and do not depend on how rows are cut into batches.
        """
        each = min(positions, -(-self.limit // self.rows))
        row = np.repeat(np.arange(rows), each)
        if each == positions:
            return row, np.tile(np.arange(positions), rows)
        steps = (first + np.arange(rows))[:, None] * each + np.arange(each)
        return row, _order(positions, self.seed)[steps.ravel() % positions]


@lru_cache(maxsize=64)
def _order(positions: int, seed: int) -> NDArray[np.intp]:
    return np.random.default_rng([seed, positions]).permutation(positions)


def observations(
    tap: Tap, seen: Seen, first: int, sampling: Sampling, padding: NDArray[np.bool_] | None, rows: int | None = None
) -> Iterator[tuple[NDArray[np.intp], Array, Array | None]]:
    """What enters a projection: rows in the model as pruned so far, and in the original where that differs.

    Parameters
    ----------
    tap : Tap
    seen : Seen
        The value for one batch.
    first : int
        Number of the batch's first calibration row.
    sampling : Sampling
    padding : bool array or None
        Where the value is padding, over leading axes of it. That of patches is not looked at.
    rows : int, optional
        Calibration rows of the batch. The value's first axis may be longer by a whole factor (time, folded into it).

    Yields
    ------
    (r,) integer array, (r, k) array, and (r, n) array or None
        Which entry of the value's first axis each row is from; the rows.
    """
    if tap.patch is None:
        now, original = (None if x is None else x.reshape(-1, x.shape[-1]) for x in (seen.now, seen.original))
        assert now is not None
        owner = (
            np.repeat(np.arange(seen.now.shape[0]), prod(seen.now.shape[1:-1]))
            if seen.now.ndim > 1
            else np.zeros(1, np.intp)
        )
        if padding is not None:
            kept = np.repeat(~padding.ravel(), prod(seen.now.shape[padding.ndim : -1]))
            now, original, owner = now[kept], None if original is None else original[kept], owner[kept]
        yield owner, now, original
        return
    count = prod(tap.patch.positions(seen.now.shape[2:]))
    each = len(seen.now) // rows if rows and len(seen.now) % rows == 0 else 1
    sampling = replace(sampling, rows=sampling.rows * max(1, each))
    row, position = sampling.places(first * each, len(seen.now), count)
    now, original = (None if x is None else _channels(tap, x) for x in (seen.now, seen.original))
    assert now is not None
    for start in range(0, len(row), CHUNK):
        part, positions = row[start : start + CHUNK], position[start : start + CHUNK]
        used = slice(part[0], part[-1] + 1)
        yield (
            part,
            tap.patch.rows(now[used], part - part[0], positions),
            None if original is None else tap.patch.rows(original[used], part - part[0], positions),
        )


def _channels(tap: Tap, x: Array) -> Array:
    width = x.shape[1] // tap.groups
    return x[:, tap.group * width : (tap.group + 1) * width]
