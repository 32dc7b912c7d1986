"""Draws from a DPP by one Cholesky factorisation and coin flips: no eigenproblem, no marginal kernel.

Let ``M = I + z L' = Λ Λᵀ`` with Λ lower triangular. Decide the items from the last to the first. With S the items taken
so far, all of them after i, the weight of everything that items 1..i can still add is

    Σ_{T ⊆ 1..i} det(z L'_{T∪S}) = det(M_{1..i}) det(R_i),   R_i = z L'_SS - Λ_{S,1..i} Λ_{S,1..i}ᵀ

(a Schur complement). So item i stays out with probability

    (det M_{1..i-1} / det M_{1..i}) (det R_{i-1} / det R_i) = (1 + q_i) / Λ_ii²,   q_i = ℓᵀ R_i⁻¹ ℓ,  ℓ = Λ_{S,i},

since ``R_{i-1} = R_i + ℓ ℓᵀ``; and where it is taken, R is bordered by ``Λ_ii ℓ`` and ``Λ_ii² - 1``. That is n³/3
flops for Λ, once for any number of draws, and about ``n t²`` for a draw of t items. Coin flips inside a factorisation
are Poulson's [1]_, who factorises the marginal kernel ``I - M⁻¹``: four times the flops, a quarter of them anew for
each draw.

A block B of items at a time (`sample_dpp`): over the block ``R ← diag(R, -I) + F Fᵀ`` with ``F = Λ_{S∪new,B}``, sums of
what is positive but for the -1; within it everything follows from ``H = I + Λ_SBᵀ R⁻¹ Λ_SB``, whose Cholesky pivots
are the ``1 + q_i`` as long as no item is taken.

References
----------
.. [1] J. Poulson, "High-performance sampling of generic Determinantal Point Processes", Philosophical Transactions of
   the Royal Society A 378 (2020), arXiv:1905.00165.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas, lapack

from onnxdpp.algebra.checks import INDEFINITE

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_PANEL = 128
_BLOCK = 48  # items decided together, at the least
_EXACT, _PROBES = 128, 16


def factorise(likelihood: Array, tilt: float) -> Array:
    """Lower Cholesky factor of ``I + z L'``.

    Parameters
    ----------
    likelihood : (n, n) float64 array
        ``L'``; its lower triangle is read.
    tilt : float
        z > 0.

    Returns
    -------
    (n, n) float64 array, C order
        Λ in its lower triangle. What stands above the diagonal is meaningless.

    Raises
    ------
    numpy.linalg.LinAlgError
        If ``L'`` is not positive semidefinite: a pivot not positive, or below one by more than rounding.

    Notes
    -----
    n³/3 flops in matrix products, left-looking over panels of 128 columns. As fast as LAPACK's dpotrf, which SciPy
    calls with Python's lock held (1.17), so that nothing would run beside it.
    """
    n = len(likelihood)
    factor = tilt * likelihood
    factor.flat[:: n + 1] += 1.0
    for low in range(0, n, _PANEL):
        high = min(low + _PANEL, n)
        panel = factor[low:, low:high]
        panel -= factor[low:, :low] @ factor[low:high, :low].T
        corner = np.linalg.cholesky(panel[: high - low])
        inverse, _ = lapack.dtrtri(corner.T, lower=0)
        panel[: high - low] = corner
        panel[high - low :] = panel[high - low :] @ inverse
    lowest = np.square(factor.diagonal()).min()
    if lowest < 1.0 - INDEFINITE * max(1.0, tilt * likelihood.diagonal().max()):
        raise np.linalg.LinAlgError(f"a pivot of I + z L' is {lowest:.3g}, below one")
    return factor


def size_moments(factor: Array, rng: np.random.Generator) -> tuple[float, float]:
    """Mean and variance of |T| under the DPP of ``z L'``: ``n - tr M⁻¹`` and ``tr M⁻¹ - tr M⁻²``.

    Exact up to 128 items; beyond, Hutchinson's estimate by 16 vectors of random signs, O(n²). Its error in the mean
    is about ``sqrt(mean / 8)``, less than the sizes themselves vary.
    """
    n = len(factor)
    if n <= _EXACT:
        probes, count = np.eye(n), 1
    else:
        probes, count = rng.choice([-1.0, 1.0], size=(_PROBES, n)).T, _PROBES
    half = blas.dtrsm(1.0, factor.T, probes, lower=0, trans_a=1)
    whole = blas.dtrsm(1.0, factor.T, half, lower=0)
    trace, trace_of_square = (float(np.square(x).sum()) / count for x in (half, whole))
    return n - trace, trace - trace_of_square


def sample_dpp(factor: Array, rng: np.random.Generator, at_most: int | None = None) -> Indices | None:
    """Draw from the DPP of ``z L'``, given the factor of ``I + z L'``.

    Parameters
    ----------
    factor : (n, n) float64 array, C order
        From `factorise`.
    rng : numpy.random.Generator
    at_most : int, optional
        Give up (None) as soon as the draw has more items.

    Returns
    -------
    (t,) intp array or None
        The items, falling.

    Raises
    ------
    numpy.linalg.LinAlgError
        If R is not positive definite in floating point.
    """
    n = len(factor)
    limit = n if at_most is None else at_most
    coins = rng.random(n)
    chosen = np.empty(0, dtype=np.intp)
    schur = np.empty((0, 0))
    block = max(_BLOCK, n // 32)
    for high in range(n, 0, -block):
        low = max(high - block, 0)
        before = len(chosen)
        known = factor[chosen, low:high]
        corner = factor[low:high, low:high]
        new = high - 1 - _decide(_inner(schur, known), corner[::-1, ::-1], coins[low:high][::-1])
        chosen = np.concatenate([chosen, new])
        if len(chosen) > limit:
            return None
        if low:
            # Entries of Λ above the diagonal are zero: the rows of the new items have them cleared.
            rows = np.concatenate([known, np.tril(corner)[new - low]])
            grown = rows @ rows.T
            grown[:before, :before] += schur
            grown[np.arange(before, len(chosen)), np.arange(before, len(chosen))] -= 1.0
            schur = grown
    return chosen


def _inner(schur: Array, known: Array) -> Array:
    """``I + Λ_SBᵀ R⁻¹ Λ_SB``, the block's items from last to first."""
    size = known.shape[1]
    if not len(schur):
        return np.eye(size)
    root = np.linalg.cholesky(schur)
    solved = blas.dtrsm(1.0, root.T, known[:, ::-1], lower=0, trans_a=1)
    inner: Array = solved.T @ solved
    inner.flat[:: size + 1] += 1.0
    return inner


def _decide(inner: Array, corner: Array, coins: Array) -> Indices:
    """Positions of the items taken in one block, everything in the order of decision.

    `corner` is upper triangular here: row i holds Λ between item i and those still to come. After i is taken,
    ``H ← H_rest - h hᵀ / H_ii + v vᵀ / σ``, ``v = Λ_ii h / H_ii - Λ_i,rest``, ``σ = Λ_ii² / H_ii - 1``.
    """
    taken: list[int] = []
    start, size = 0, len(coins)
    squares = np.square(corner.diagonal())
    while start < size:
        # Pivots while nothing is taken: they hold up to the first coin that takes an item.
        root, info = lapack.dpotrf(inner.T, lower=1, clean=0)
        if info:
            raise np.linalg.LinAlgError("H is not positive definite")
        pivots = np.square(root.diagonal())
        hits = np.flatnonzero(coins[start:] * squares[start:] >= pivots)
        if not hits.size:
            break
        c = int(hits[0])
        i = start + c
        taken.append(i)
        # Eliminate the items up to and including i, then border.
        rest = root[c + 1 :, : c + 1]
        v = (corner[i, i] / root[c, c]) * rest[:, c] - corner[i, i + 1 :]
        inner = inner[c + 1 :, c + 1 :] - rest @ rest.T
        inner += np.multiply.outer(v, v / (squares[i] / pivots[c] - 1.0))
        start = i + 1
    return np.array(taken, dtype=np.intp)
