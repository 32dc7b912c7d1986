"""The mode of a k-DPP, greedily: partial pivoted Cholesky of ``L = L' + epsilon I``.

With S chosen, adding i multiplies ``det L_S`` by the residual ``d_i = L_ii - L_iS L_SS⁻¹ L_Si``: the diagonal of what
Cholesky has left. So the greedy MAP of [1]_ takes the largest residual as pivot, k times:

    c_i = (L_ip - Σ_{q<t} C_qp C_qi) / sqrt(d_p),   d_i ← d_i - c_i²,

O(n k²) for all, and of L only its diagonal and the k rows of the pivots are ever needed.

Residuals that agree to 1e-9 are equal: ties go to the larger contribution, then to the lower index, so that the
result does not hang on the last bits. A residual that has come down to epsilon says that the item is already spanned
by the chosen ones; from the first pivot at most ``1.1 epsilon`` on, differences are noise, and the rest is filled in
order of contribution.

References
----------
.. [1] L. Chen, G. Zhang, E. Zhou, "Fast Greedy MAP Inference for Determinantal Point Process to Improve
   Recommendation Diversity", NeurIPS 2018, arXiv:1709.05135.
"""

from collections.abc import Callable
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from onnxdpp.algebra.checks import INDEFINITE, check_epsilon, check_likelihood, check_size

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_TIE = 0.5e-9  # half a step of rounding to 1e-9 of the largest
_FLAT = 1.1


def maximise_k_dpp(likelihood: Array, k: int, *, epsilon: float, contribution: Array | None = None) -> Indices:
    """Choose k items that maximise ``det((L' + epsilon I)_S)``, greedily.

    Parameters
    ----------
    likelihood : (n, n) float64 array
        ``L'``, symmetric positive semidefinite, without epsilon.
    k : int
        Number of items, 1 <= k <= n.
    epsilon : float
        Added to the diagonal, > 0.
    contribution : (n,) float64 array, optional
        Decides ties and the order of the flat tail, the larger first; without it the lower index does.

    Returns
    -------
    (k,) intp array
        The items in order of choice: the answer to every smaller k is a prefix.

    Raises
    ------
    ValueError
        If `likelihood` is not square, not symmetric, not finite or visibly not positive semidefinite, k is out of
        range, epsilon is not positive, or `contribution` does not fit.

    Notes
    -----
    O(n k²) float64 operations, n k numbers of memory. Never worse than ``(1 - 1/e)`` of the maximal log det
    where that is monotone.

    Examples
    --------
    >>> twins = np.array([[1.0, 1.0, 0.1], [1.0, 1.0, 0.1], [0.1, 0.1, 1.0]])
    >>> maximise_k_dpp(twins, 2, epsilon=0.01)
    array([0, 2])
    """
    check_likelihood(likelihood)
    return maximise_by_columns(
        likelihood.__getitem__, np.diagonal(likelihood), k, epsilon=epsilon, contribution=contribution
    )


def maximise_by_columns(
    column: Callable[[int], Array],
    diagonal: Array,
    k: int,
    *,
    epsilon: float,
    contribution: Array | None = None,
) -> Indices:
    """Do as `maximise_k_dpp` does, from the diagonal of ``L'`` and the columns that are visited.

    Parameters
    ----------
    column : callable, int -> (n,) float64 array
        Column i of ``L'`` (its row, as well: ``L'`` is symmetric). Called once per pivot, at most k times; the
        result is only read.
    diagonal : (n,) float64 array
        Diagonal of ``L'``.
    k, epsilon, contribution
        As for `maximise_k_dpp`.

    Returns
    -------
    (k,) intp array
        The items in order of choice.

    Raises
    ------
    ValueError
        If k, epsilon or `contribution` cannot be, or a residual falls below zero by more than rounding.
    """
    n = len(diagonal)
    check_size(k, n)
    check_epsilon(epsilon)
    contribution = _checked_contribution(contribution, n)
    residual = diagonal + epsilon
    scale = float(residual.max())
    factor = np.empty((k, n))  # rows of the Cholesky factor, all n columns of each
    chosen = np.empty(k, dtype=np.intp)
    for t in range(k):
        pivot, largest = _largest(residual, contribution)
        if largest <= _FLAT * epsilon:
            chosen[t:] = _by_contribution(contribution, chosen[:t])[: k - t]
            break
        chosen[t] = pivot
        row = factor[t]
        np.dot(factor[:t, pivot], factor[:t], out=row)
        # epsilon stands on the diagonal of L alone, and the pivot's own entry is not needed again.
        np.subtract(column(pivot), row, out=row)
        row /= sqrt(largest)
        residual -= row * row
        residual[pivot] = -np.inf
    _check_residuals(residual, epsilon, scale)
    return chosen


def _largest(residual: Array, contribution: Array) -> tuple[int, float]:
    """The pivot and its residual; among equals the larger contribution, then the lower index."""
    largest = residual[residual.argmax()]
    (tied,) = (residual >= largest * (1.0 - _TIE)).nonzero()
    pivot = int(tied[contribution[tied].argmax()] if len(tied) > 1 else tied[0])
    return pivot, float(residual[pivot])


def _by_contribution(contribution: Array, chosen: Indices) -> Indices:
    """All items not chosen, the largest contribution first, then the lowest index."""
    order = np.argsort(-contribution, kind="stable")
    return order[~np.isin(order, chosen)]


def _check_residuals(residual: Array, epsilon: float, scale: float) -> None:
    """Residuals of a positive semidefinite ``L'`` never fall below epsilon; they only ever fall, so once will do."""
    open_ = residual[residual > -np.inf]
    if open_.size and open_.min() < epsilon - INDEFINITE * scale:
        raise ValueError(
            f"likelihood {residual.shape * 2} must be positive semidefinite; "
            f"a pivot came down to {open_.min() - epsilon:.3g} at a largest diagonal entry of {scale:.3g}."
        )


def _checked_contribution(contribution: Array | None, n: int) -> Array:
    if contribution is None:
        return np.zeros(n)
    if contribution.shape != (n,) or np.isnan(contribution).any():
        raise ValueError(
            f"contribution must be {n} numbers, got shape {contribution.shape} "
            f"with {int(np.isnan(contribution).sum())} NaN."
        )
    return contribution
