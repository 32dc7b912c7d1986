"""A few rows of the calibration data, to run many times."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from onnxdpp.graph.batches import Batch, Batches

BYTES = 1 << 23
"""Rows that are run together hold no more, since what is computed of images is large."""


def spread(count: int, most: int) -> NDArray[np.intp]:
    """Evenly spaced places among `count`, first and last included: `most`, or all where there are fewer."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.intp))


def picked(batches: Batches, wanted: NDArray[np.intp]) -> Iterator[Batch]:
    """The rows with these numbers, each by itself; where the model takes whole batches only, those that hold one."""
    for batch in batches:
        if not len(wanted) or batch.first > wanted.max():
            return
        inside = np.unique(wanted[(wanted >= batch.first) & (wanted < batch.first + batch.rows)])
        if batches.fixed:
            if len(inside):
                yield batch
            continue
        for row in inside.tolist():
            place = slice(row - batch.first, row - batch.first + 1)
            yield Batch({name: array[place].copy() for name, array in batch.feeds.items()}, row, 1)


def stacked(rows: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Single rows together, as many of the same shapes as come one after the other, at most `size`, or `BYTES`."""
    group: list[Batch] = []
    for row in rows:
        most = min(size, BYTES // max(1, sum(array.nbytes for array in row.feeds.values())))
        if group and (len(group) >= most or _shapes(row) != _shapes(group[0])):
            yield _together(group)
            group = []
        group.append(row)
    if group:
        yield _together(group)


def _shapes(batch: Batch) -> list[tuple[int, ...]]:
    return [array.shape for array in batch.feeds.values()]


def _together(group: list[Batch]) -> Batch:
    feeds = {name: np.concatenate([row.feeds[name] for row in group]) for name in group[0].feeds}
    return Batch(feeds, group[0].first, len(group))
