"""The mode of a k-DPP, greedily: partial pivoted Cholesky of ``L = L' + epsilon I``.

With S chosen, adding i multiplies ``det L_S`` by the residual ``d_i = L_ii - L_iS L_SS⁻¹ L_Si``: the diagonal of what
Cholesky has left. So the greedy MAP of [1]_ takes the largest residual as pivot, k times:

    c_i = (L_ip - Σ_{q<t} C_qp C_qi) / sqrt(d_p),   d_i ← d_i - c_i²,

O(n k²) for all, and of L only its diagonal and the k rows of the pivots are ever needed.

Residuals that agree to 1e-9 are equal: ties go to the larger contribution, then to the lower index, so that the
result does not hang on the last bits. A residual that has come down to epsilon says that the item is already spanned
by the chosen ones; from the first pivot at most ``1.1 epsilon`` on, differences are noise, and the rest is filled in
order of contribution.

With a *pattern* (2:4 and the like), k of every group of so many consecutive items stay: the same greedy choice, from
which the rest of a group is taken out as soon as k of it are chosen. Greedy on such a partition is within 1/2 of the
best log det, where that is monotone, against ``1 - 1/e`` without one.

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


def maximise_k_dpp(
    likelihood: Array, k: int, *, epsilon: float, contribution: Array | None = None, group: int | None = None
) -> Indices:
    """Choose k items that maximise ``det((L' + epsilon I)_S)``, greedily.

    Parameters
    ----------
    likelihood : (n, n) float64 array
        ``L'``, symmetric positive semidefinite, without epsilon.
    k : int
        Number of items, 1 <= k <= n, or of those in every group.
    epsilon : float
        Added to the diagonal, > 0.
    contribution : (n,) float64 array, optional
        Decides ties and the order of the flat tail, the larger first; without it the lower index does.
    group : int, optional
        Keep k of every `group` consecutive items, k <= group: 2 of 4, say. A shorter last group keeps k of its
        items, too, or all.

    Returns
    -------
    (k,) intp array, with `group` as many as the groups keep together
        The items in order of choice. Without `group` the answer to every smaller k is a prefix.

    Raises
    ------
    ValueError
        If `likelihood` is not square, not symmetric, not finite or visibly not positive semidefinite, k is out of
        range, epsilon is not positive, or `contribution` does not fit.

    Notes
    -----
    O(n k²) float64 operations and n k numbers of memory, k being the length of the result.

    Examples
    --------
    >>> twins = np.array([[1.0, 1.0, 0.1], [1.0, 1.0, 0.1], [0.1, 0.1, 1.0]])
    >>> maximise_k_dpp(twins, 2, epsilon=0.01)
    array([0, 2])
    >>> maximise_k_dpp(np.diag([4.0, 3.0, 2.0, 1.0]), 1, epsilon=0.01, group=2)
    array([0, 2])
    """
    check_likelihood(likelihood)
    return maximise_by_columns(
        likelihood.__getitem__, np.diagonal(likelihood), k, epsilon=epsilon, contribution=contribution, group=group
    )


def maximise_by_columns(
    column: Callable[[int], Array],
    diagonal: Array,
    k: int,
    *,
    epsilon: float,
    contribution: Array | None = None,
    group: int | None = None,
) -> Indices:
    """Do as `maximise_k_dpp` does, from the diagonal of ``L'`` and the columns that are visited.

    Parameters
    ----------
    column : callable, int -> (n,) float64 array
        Column i of ``L'`` (its row, as well: ``L'`` is symmetric). Called once per pivot, at most k times; the
        result is only read.
    diagonal : (n,) float64 array
        Diagonal of ``L'``.
    k, epsilon, contribution, group
        As for `maximise_k_dpp`.

    Returns
    -------
    (k,) intp array, with `group` as many as the groups keep together
        The items in order of choice.

    Raises
    ------
    ValueError
        If k, epsilon or `contribution` cannot be, or a residual falls below zero by more than rounding.
    """
    n = len(diagonal)
    group = n if group is None else group
    check_size(k, group)
    check_epsilon(epsilon)
    contribution = _checked_contribution(contribution, n)
    residual = diagonal + epsilon
    scale = float(residual.max())
    lowest = np.inf
    wanted = _wanted(n, k, group)
    total = int(wanted.sum())
    factor = np.empty((total, n))  # rows of the Cholesky factor, all n columns of each
    chosen = np.empty(total, dtype=np.intp)
    for t in range(total):
        pivot, largest = _largest(residual, contribution)
        if largest <= _FLAT * epsilon:
            chosen[t:] = _by_contribution(contribution, residual > -np.inf, wanted, group)
            break
        chosen[t] = pivot
        row = factor[t]
        np.dot(factor[:t, pivot], factor[:t], out=row)
        # epsilon stands on the diagonal of L alone, and the pivot's own entry is not needed again.
        np.subtract(column(pivot), row, out=row)
        row /= sqrt(largest)
        residual -= row * row
        residual[pivot] = -np.inf
        owner = pivot // group
        wanted[owner] -= 1
        if not wanted[owner]:
            lowest = min(lowest, _lowest(residual[owner * group : (owner + 1) * group]))
            residual[owner * group : (owner + 1) * group] = -np.inf
    _check_residual(min(lowest, _lowest(residual)), epsilon, scale, n)
    return chosen


def _largest(residual: Array, contribution: Array) -> tuple[int, float]:
    """The pivot and its residual; among equals the larger contribution, then the lower index."""
    largest = residual[residual.argmax()]
    (tied,) = (residual >= largest * (1.0 - _TIE)).nonzero()
    pivot = int(tied[contribution[tied].argmax()] if len(tied) > 1 else tied[0])
    return pivot, float(residual[pivot])


def _wanted(n: int, k: int, group: int) -> Indices:
    """How many items each group keeps."""
    sizes = np.full(-(-n // group), group)
    sizes[-1] = n - group * (len(sizes) - 1)
    wanted: Indices = np.minimum(sizes, k).astype(np.intp)
    return wanted


def _by_contribution(contribution: Array, free: NDArray[np.bool_], wanted: Indices, group: int) -> Indices:
    """As many of each group's free items as it wants, the largest contribution first, then the lowest index."""
    order = np.argsort(-contribution, kind="stable")
    order = order[free[order]]
    owners = order // group
    by_owner = np.argsort(owners, kind="stable")
    rank = np.empty_like(order)  # of an item among the free ones of its group
    rank[by_owner] = np.arange(len(order)) - np.searchsorted(owners[by_owner], owners[by_owner])
    return order[rank < wanted[owners]]


def _lowest(residual: Array) -> float:
    """The lowest residual of items not chosen."""
    return float(residual.min(initial=np.inf, where=residual > -np.inf))


def _check_residual(lowest: float, epsilon: float, scale: float, n: int) -> None:
    """Residuals of a positive semidefinite ``L'`` never fall below epsilon; they only fall: once at the end will do."""
    if lowest < epsilon - INDEFINITE * scale:
        raise ValueError(
            f"likelihood {n, n} must be positive semidefinite; "
            f"a pivot came down to {lowest - epsilon:.3g} at a largest diagonal entry of {scale:.3g}."
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
