"""What a pruned model's outputs lack, row by row, and how changes of them count.

It is told in two ways, each scaled to count the same: the change that is missing, relative to the output's own size;
and, of an output that may be scores of classes, what the Kullback-Leibler divergence of its softmax feels. With p and q
the softmax before and now, and ``a = (p + q) / 2``, that is ``g = p - q`` with the metric ``diag(a) - a aᵀ = Rᵀ R``,
``R = diag(√a) (I - 1 aᵀ)``; in least squares, errors ``g / √a`` and changes ``R dz``. Probabilities are looked at by
their logarithms, which are scores.
"""

from collections.abc import Sequence
from enum import Enum, auto

import numpy as np
from scipy.special import softmax

from onnxdpp.algebra.moments import Matrix
from onnxdpp.judging import is_distribution

ENTRIES = 64  # of the outputs of a row: of more, sums with random signs stand for them
TINY = 1e-9  # probability that no class goes below
NO_DIVERGENCE = 1e-12  # nats for a row: rounding


class Kind(Enum):
    """What an output may be."""

    NUMBERS = auto()
    SCORES = auto()
    """Of classes: a softmax would make probabilities of them."""
    PROBABILITIES = auto()

    @classmethod
    def of(cls, batches: Sequence[Matrix], *, padded: bool) -> "Kind":
        """By all batches together, since the rows of any may happen to add up to 1."""
        first = batches[0]
        if padded or first.ndim != 2 or first.shape[1] < 2:
            return cls.NUMBERS
        return cls.PROBABILITIES if all(map(is_distribution, batches)) else cls.SCORES


def as_scores(outputs: Sequence[Matrix], kinds: Sequence[Kind]) -> list[Matrix]:
    """Outputs, with the logarithm of probabilities: what moves scores by as much everywhere hardly moves these."""
    pairs = zip(outputs, kinds, strict=True)
    return [np.log(np.maximum(part, TINY)) if kind is Kind.PROBABILITIES else part for part, kind in pairs]


class Lacking:
    """What counts of the outputs of a batch: relative to their size; and of scores of classes, to their softmax.

    Attributes
    ----------
    errors : list of (r, s) float64 arrays
        One for each of these two that there is.
    """

    def __init__(
        self, wanted: Sequence[Matrix], now: Sequence[Matrix], scales: Sequence[float], kinds: Sequence[Kind]
    ) -> None:
        self._scales = scales
        pairs = zip(wanted, now, kinds, strict=True)
        self._means = [None if kind is Kind.NUMBERS else _mean(old, new) for old, new, kind in pairs]
        lack = [old - new for old, new in zip(wanted, now, strict=True)]
        classes = [
            (softmax(old, axis=1) - softmax(new, axis=1)) / np.sqrt(mean)
            for old, new, mean in zip(wanted, now, self._means, strict=True)
            if mean is not None
        ]
        self.errors = [_flat([scale * part for scale, part in zip(scales, lack, strict=True)])]
        if classes:
            self.errors.append(_flat(classes))

    def felt(self, changes: Sequence[Matrix]) -> list[Matrix]:
        """How changes of the outputs count, as `errors`."""
        found = [_flat([scale * part for scale, part in zip(self._scales, changes, strict=True)])]
        classes = [
            np.sqrt(mean) * (part - (mean * part).sum(1, keepdims=True))
            for part, mean in zip(changes, self._means, strict=True)
            if mean is not None
        ]
        return [*found, _flat(classes)] if classes else found


def _mean(old: Matrix, new: Matrix) -> Matrix:
    """The mean of both softmaxes."""
    mean: Matrix = (softmax(old, axis=1) + softmax(new, axis=1)) / 2
    return np.maximum(mean, TINY)


def _flat(parts: Sequence[Matrix]) -> Matrix:
    """(r, s): all numbers of each row; if they are many, sums of them with random signs."""
    flat = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    if flat.shape[1] <= ENTRIES:
        return flat
    signs = np.random.default_rng(0).choice(np.array([-1.0, 1.0]), size=flat.shape[1])
    padded = np.pad(flat * signs, ((0, 0), (0, -flat.shape[1] % ENTRIES)))
    return np.asarray(padded.reshape(len(flat), -1, ENTRIES).sum(1))
