"""How far the answers of two models lie apart, summed batch by batch: arrays in, numbers out.

Of an output of floats, with `a` all its entries in the original and `b` those in the other model, in float64:

    relative L2 = |b - a| / |a|,   max abs = max |b_i - a_i|,   cosine = a·b / (|a| |b|)

Entries that are not finite in the original are left out. Where one is not finite in the other model alone, there is no
distance to speak of: all three are None, and `lost` counts such entries.

*Agreement* is the share of rows to which both models give the same class, where the output looks like classes (see
`accuracy.classes`); rows with a NaN in the original are left out. Of outputs that are no floats, it is the share of
equal entries.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxdpp.accuracy import Tally, classes
from onnxdpp.graph.padding import blanked

Array = NDArray[Any]


def relative_l2(difference: float, before: float) -> float:
    """From sums of squares: of what differs, and of the original; infinite where that alone is zero.

    >>> relative_l2(1.0, 4.0), relative_l2(0.0, 0.0), relative_l2(1.0, 0.0)
    (0.5, 0.0, inf)
    """
    if before > 0:
        return math.sqrt(difference / before)
    return math.inf if difference else 0.0


@dataclass
class Answers:
    """Running sums for one output of two models.

    Attributes
    ----------
    lost : int
        Entries that are finite in the original alone.
    tally : Tally
        By which model is right, where labels were given and the output looks like their classes.
    outside : int or None
        The first label that is no class of this output.
    """

    lost: int = 0
    tally: Tally = field(default_factory=Tally)
    outside: int | None = None
    _floats: bool = False
    _entries: int = 0
    _difference: float = 0.0
    _before: float = 0.0
    _after: float = 0.0
    _product: float = 0.0
    _largest: float = 0.0
    _compared: int = 0
    _agreeing: int = 0
    _unclassed: bool = False

    def add(
        self, before: Array, after: Array, labels: Array | None = None, padding: NDArray[np.bool_] | None = None
    ) -> int:
        """Take in the output of one batch.

        Parameters
        ----------
        before, after : arrays of the same shape and kind
        labels : (rows,) integer array, optional
        padding : bool array, optional
            Entries, over leading axes, that are not looked at.

        Returns
        -------
        int
            How many entries are finite in the original alone.
        """
        if padding is not None:
            some = ~padding.all(axis=tuple(range(1, padding.ndim)))
            before, after, padding = before[some], after[some], padding[some]
            labels = None if labels is None else labels[some]
        if before.ndim and not len(before):  # no row of this batch is looked at
            return 0
        old, new = _classes(before, padding), _classes(after, padding)
        if old is None or new is None:
            self._unclassed = True
        elif labels is not None and len(labels) == len(old) and old.dtype.kind in "iub":
            self._count(labels, old, new, before)
        if before.dtype.kind != "f":
            equal = before == after if padding is None else (before == after)[~padding]
            self._compared += equal.size
            self._agreeing += int(equal.sum())
            return 0
        self._floats = True
        if old is not None and new is not None:
            known = old >= 0
            self._compared += int(known.sum())
            self._agreeing += int((old == new)[known].sum())
        return self._measure(before, after, padding)

    @property
    def is_known(self) -> bool:
        """Whether there was anything to compare: an entry, finite in the original."""
        return bool(self._entries or self.lost) if self._floats else bool(self._compared)

    def result(self) -> dict[str, float | None]:
        """``relative_l2``, ``max_abs``, ``cosine`` and ``agreement``; of outputs that are no floats, the last alone."""
        looked = self._compared and not (self._floats and self._unclassed)
        agreement = self._agreeing / self._compared if looked else None
        if not self._floats:
            return {"agreement": agreement}
        relative = largest = cosine = math.nan
        if self._entries and not self.lost:
            largest = self._largest
            relative = relative_l2(self._difference, self._before)
            if self._difference == 0:
                cosine = 1.0 if self._before > 0 else math.nan
            elif self._before > 0 and self._after > 0:
                cosine = self._product / math.sqrt(self._before) / math.sqrt(self._after)
                cosine = max(-1.0, min(1.0, cosine))
        figures = {"relative_l2": relative, "max_abs": largest, "cosine": cosine}
        return {name: value if math.isfinite(value) else None for name, value in figures.items()} | {
            "agreement": agreement
        }

    def _count(self, labels: Array, old: Array, new: Array, before: Array) -> None:
        if before.dtype.kind == "f":
            wrong = (labels < 0) | (labels >= before[0].size)
            if wrong.any():
                self.outside = int(labels[wrong][0])
        self.tally.add(labels, old, new)

    def _measure(self, before: Array, after: Array, padding: NDArray[np.bool_] | None) -> int:
        sound = np.isfinite(before)
        if padding is not None:
            sound[padding] = False
        a, b = before[sound].astype(np.float64), after[sound].astype(np.float64)
        lost = int((~np.isfinite(b)).sum())
        self.lost += lost
        if lost:
            return lost
        with np.errstate(over="ignore", invalid="ignore"):  # what is too large is no figure
            gap = b - a
            self._entries += gap.size
            # Sums of NumPy's own: those of BLAS depend on the number of threads.
            self._difference += float((gap * gap).sum())
            self._before += float((a * a).sum())
            self._after += float((b * b).sum())
            self._product += float((a * b).sum())
            self._largest = max(self._largest, float(np.abs(gap).max(initial=0.0)))
        return 0


def _classes(output: Array, padding: NDArray[np.bool_] | None) -> Array | None:
    """The class of each row; none is where there is padding."""
    return classes(blanked(output, padding, -np.inf) if output.dtype.kind == "f" else output)
