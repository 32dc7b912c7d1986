"""What a pruned model's outputs lack, row by row, and how changes of them count.

It is told in two ways, each scaled to count the same: the change that is missing, relative to the output's own size;
and, of an output that may be scores of classes, what the Kullback-Leibler divergence of its softmax feels. With p and q
the softmax before and now, and ``a = (p + q) / 2``, that is ``g = p - q`` with the metric ``diag(a) - a aᵀ = Rᵀ R``,
``R = diag(√a) (I - 1 aᵀ)``; in least squares, errors ``g / √a`` and changes ``R dz``.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from onnxdpp.algebra.moments import Matrix
from onnxdpp.judging import is_distribution

ENTRIES = 64  # of the outputs of a row: of more, sums with random signs stand for them
TINY = 1e-9  # probability that no class goes below
NO_DIVERGENCE = 1e-12  # nats for a row: rounding


def may_be_scores(batches: Sequence[Matrix]) -> bool:
    """Whether an output may be scores of classes: not single numbers, probabilities, nor several positions for a row.

    Of all batches together, since any of them may happen to add up to 1.
    """
    first = batches[0]
    return first.ndim == 2 and first.shape[1] > 1 and not all(map(is_distribution, batches))


class Lacking:
    """What counts of the outputs of a batch: relative to their size; and of scores of classes, to their softmax.

    Attributes
    ----------
    errors : list of (r, s) float64 arrays
        One for each of these two that there is.
    """

    def __init__(
        self, wanted: Sequence[Matrix], now: Sequence[Matrix], scales: Sequence[float], scored: Sequence[bool]
    ) -> None:
        self._scales = scales
        pairs = zip(wanted, now, scored, strict=True)
        self._means = [_mean(old, new) if scores else None for old, new, scores in pairs]
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
