"""What becomes of the neurons' axis in a Reshape."""

from collections.abc import Sequence
from math import prod

import numpy as np

from onnxdpp.graph.atoms import Atoms, Labels

LARGEST = 1 << 26  # entries of the axes looked at together


def moved(
    before: Sequence[object], axis: int, labels: Labels, after: Sequence[object], atoms: Atoms, title: str
) -> tuple[int, Labels] | str:
    """Where the neurons lie after a Reshape from sizes `before` to sizes `after`.

    Sizes are ints, or anything that stands for an unknown size (equal strings are equal sizes). Row-major order makes
    axes whose sizes agree from either end, or whose products do, the same entries before and after.

    Where an axis is divided, what comes to lie in one entry of the outermost part stays or goes together.

    Parameters
    ----------
    before, after : sequences of sizes
    axis : int
        Of the neurons, from the front.
    labels : (before[axis],) integer array
    atoms : Atoms
    title : str
        What does it, for reasons.

    Returns
    -------
    (int, labels) or str
        The axis, from the front, and the atom of each entry along it; or why that is not known.
    """
    parts = _aligned(before, after)
    for (low, high), (start, stop) in parts:
        if not low <= axis < high:
            continue
        if (high - low, stop - start) == (1, 1):
            return start, labels
        sizes, targets = list(before[low:high]), list(after[start:stop])
        if sizes[axis - low] != len(labels):
            sizes[axis - low] = len(labels)
        known = [size for size in targets if isinstance(size, int)]
        if not all(isinstance(size, int) for size in sizes) or len(targets) - len(known) > 1:
            break
        total = prod(sizes)  # type: ignore[arg-type]
        if len(known) < len(targets):
            missing = total // max(1, prod(known))
            targets = [size if isinstance(size, int) else missing for size in targets]
        if prod(targets) != total or not targets or not 0 < total <= LARGEST:  # type: ignore[arg-type]
            break
        return _relabelled(sizes, axis - low, labels, targets, start, atoms, title)  # type: ignore[arg-type]
    return "moves its neurons in a way that is not known before it runs"


Part = tuple[tuple[int, int], tuple[int, int]]


def _aligned(before: Sequence[object], after: Sequence[object]) -> list[Part]:
    """Ranges of axes that hold the same entries before and after; what cannot be told apart is one range."""
    parts: list[Part] = []
    i, j = 0, 0
    end, stop = len(before), len(after)
    while i < end and j < stop and before[i] is not None and before[i] == after[j]:
        parts.append(((i, i + 1), (j, j + 1)))
        i, j = i + 1, j + 1
    while end > i and stop > j and before[end - 1] is not None and before[end - 1] == after[stop - 1]:
        end, stop = end - 1, stop - 1
        parts.append(((end, end + 1), (stop, stop + 1)))
    # From the end: the shortest runs with equal products.
    while (run := _equal_run(before[i:end][::-1], after[j:stop][::-1])) is not None:
        parts.append(((end - run[0], end), (stop - run[1], stop)))
        end, stop = end - run[0], stop - run[1]
    parts.append(((i, end), (j, stop)))
    return parts


def _equal_run(left: Sequence[object], right: Sequence[object]) -> tuple[int, int] | None:
    """How many leading sizes of each have the same product, at least one of each."""
    a = b = 0
    product_left = product_right = 1
    while True:
        if a and b and product_left == product_right:
            return a, b
        if a == 0 or (b > 0 and product_left < product_right):
            if a == len(left) or not isinstance(size := left[a], int) or size == 0:
                return None
            product_left, a = product_left * size, a + 1
        else:
            if b == len(right) or not isinstance(size := right[b], int) or size == 0:
                return None
            product_right, b = product_right * size, b + 1


def _relabelled(
    sizes: list[int], axis: int, labels: Labels, targets: list[int], start: int, atoms: Atoms, title: str
) -> tuple[int, Labels] | str:
    shape = [1] * len(sizes)
    shape[axis] = sizes[axis]
    entries = np.broadcast_to(labels.reshape(shape), sizes).reshape(targets)
    wide = [place for place, size in enumerate(targets) if size > 1]
    for place in wide:
        rows = np.moveaxis(entries, place, 0).reshape(targets[place], -1)
        if (rows == rows[:, :1]).all():
            return start + place, rows[:, 0].copy()
    if not wide:
        return start, np.ravel(entries)
    # The axis is divided: the outermost part carries it on.
    rows = np.moveaxis(entries, wide[0], 0).reshape(targets[wide[0]], -1)
    heads = np.repeat(rows[:, :1], rows.shape[1], axis=1)
    atoms.unite(heads.ravel(), rows.ravel(), f"{title} joins its neurons with entries that always stay")
    return start + wide[0], rows[:, 0].copy()
