"""Two models that answer the same rows, and the labels of these rows: how often each is right.

Rows on which both are right, or both wrong, say nothing of the change. With n rows, of which the pruned model lost b
(only the original is right) and gained c (only the pruned is), accuracy changes by (c - b) / n. Its interval of 95 % is
that of Agresti and Min for matched pairs, a normal one with half a row added to each of the four cells:

    (c - b ± z sqrt(b + c + 1 - (c - b)² / (n + 2))) / (n + 2),   z = 1.96, cut at -1 and 1

so that models which never differ do not get an interval of no width.

References
----------
A. Agresti, Y. Min: Simple improved confidence intervals for comparing matched proportions. Statistics in Medicine 24,
2005, 729-740. doi:10.1002/sim.1781
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

Z = 1.959963984540054
"""97.5 % of a standard normal distribution lie below."""


def classes(output: Array) -> Array | None:
    """The class that an output gives to each row.

    Parameters
    ----------
    output : array
        With rows along the first axis.

    Returns
    -------
    (rows,) array or None
        Of scores (floats with one further axis longer than 1): the index of the largest, -1 where one is NaN. Of one
        integer, boolean or string for each row: that. None where the output looks like neither.

    Examples
    --------
    >>> classes(np.array([[0.1, 0.9], [0.8, 0.2]])), classes(np.array([[7], [5]])), classes(np.array([[0.5], [0.25]]))
    (array([1, 0]), array([7, 5]), None)
    """
    if not output.ndim:
        return None
    if output.dtype.kind != "f":
        return output.reshape(len(output)) if output.size == len(output) else None
    if sum(size > 1 for size in output.shape[1:]) != 1 or not output.size:
        return None
    scores = output.reshape(len(output), -1)
    return np.where(np.isnan(scores).any(1), -1, scores.argmax(1))


@dataclass
class Tally:
    """Counts of rows by which of two models is right.

    Attributes
    ----------
    rows, before, after : int
        All; those on which the original is right; the pruned model.
    lost, gained : int
        Those on which only the original is right; only the pruned model.
    """

    rows: int = 0
    before: int = 0
    after: int = 0
    lost: int = 0
    gained: int = 0

    def add(self, labels: Array, before: Array, after: Array) -> None:
        """Count the rows of a batch; all three (rows,)."""
        old, new = before == labels, after == labels
        self.rows += len(labels)
        self.before += int(old.sum())
        self.after += int(new.sum())
        self.lost += int((old & ~new).sum())
        self.gained += int((new & ~old).sum())

    def result(self) -> dict[str, float | int]:
        """Accuracies, their change, its interval of 95 %, and the counts behind them; there must be rows."""
        low, high = interval(self.rows, self.lost, self.gained)
        return {
            "before": self.before / self.rows,
            "after": self.after / self.rows,
            "change": (self.gained - self.lost) / self.rows,
            "low": low,
            "high": high,
            "lost": self.lost,
            "gained": self.gained,
            "rows": self.rows,
        }


def interval(rows: int, lost: int, gained: int) -> tuple[float, float]:
    """Interval of 95 % of the change of accuracy; see the header.

    >>> [round(bound, 4) for bound in interval(1000, 20, 10)]
    [-0.0209, 0.0009]
    """
    change, n = gained - lost, rows + 2
    half = Z * math.sqrt(lost + gained + 1 - change**2 / n)
    return max(-1.0, (change - half) / n), min(1.0, (change + half) / n)
