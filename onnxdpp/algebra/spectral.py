"""Draws by eigenpairs: the mixture of elementary DPPs, from a whole spectrum or from a low-rank factor.

The DPP of ``z L' = z Σ λ_i v_i v_iᵀ`` takes each eigenvector with probability ``z λ_i / (1 + z λ_i)``, independently,
and draws from the projection DPP of those taken (theorem 2.3 of [1]_). The sizes being a sum of coins, proposals for
the core of a k-DPP (`mixture`) are rejected before anything but coins has been spent: even at the worst spectrum one of
about ``sqrt(2 π n / 4)`` is accepted. No table of elementary symmetric polynomials is needed.

With ``L' ≈ F Fᵀ``, F (n, r) by pivoted Cholesky, the eigenpairs are those of ``Fᵀ F``. What F leaves out is positive
semidefinite with some trace τ, and ``det L_S`` changes by a factor between ``exp(-τ/ε)`` and 1: so the draw is off by
at most ``exp(τ/ε) - 1`` in total variation, and τ is held below ``1e-8 ε``.

References
----------
.. [1] A. Kulesza, B. Taskar, "Determinantal Point Processes for Machine Learning", Foundations and Trends in
   Machine Learning 5 (2012), arXiv:1207.6083, sections 2.4.4, 3.3 and 5.2.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxdpp.algebra.checks import INDEFINITE
from onnxdpp.algebra.mixture import Mixture
from onnxdpp.algebra.projection import sample_projection_dpp

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

TRUNCATION = 1e-8
_FLIPS = 16
_LARGEST_LOG = 700.0


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues (r,) of ``L'`` and what their eigenvectors are made of: column i is that of ``basis @ rotation``."""

    eigenvalues: Array
    basis: Array
    rotation: Array | None = None

    def vectors(self, picked: Indices) -> Array:
        """Orthonormal basis (n, t) of the span of the eigenvectors picked."""
        if self.rotation is None:
            return self.basis[:, picked]
        # F q / sqrt(λ) loses orthogonality at small λ; the span is what counts, and Householder keeps it.
        return np.linalg.qr(self.basis @ self.rotation[:, picked])[0]


def spectrum(likelihood: Array) -> Spectrum:
    """Eigendecomposition of ``L'`` (n, n), from its lower triangle; O(n³).

    Raises
    ------
    ValueError
        If an eigenvalue is negative beyond rounding.
    """
    eigenvalues, eigenvectors = np.linalg.eigh(likelihood)
    return Spectrum(checked_eigenvalues(eigenvalues), eigenvectors)


def low_rank_spectrum(likelihood: Array, epsilon: float, rank: int) -> Spectrum | None:
    """Eigenpairs of a pivoted Cholesky factor of ``L'``, O(n r²); None where `rank` columns do not suffice."""
    factor = low_rank_factor(likelihood, TRUNCATION * epsilon, rank)
    if factor is None:
        return None
    eigenvalues, rotation = np.linalg.eigh(factor.T @ factor)
    return Spectrum(np.maximum(eigenvalues, 0.0), factor, rotation)


def low_rank_factor(likelihood: Array, tail: float, rank: int) -> Array | None:
    """F (n, r), r <= rank, with ``tr(L' - F Fᵀ) <= tail`` by pivoted Cholesky, or None."""
    residual = likelihood.diagonal().copy()
    rows = np.empty((rank, len(residual)))
    for r in range(rank + 1):
        if np.maximum(residual, 0.0).sum() <= tail:
            return np.ascontiguousarray(rows[:r].T)
        if r == rank:
            break
        pivot = int(residual.argmax())
        np.subtract(likelihood[pivot], rows[:r, pivot] @ rows[:r], out=rows[r])
        rows[r] /= np.sqrt(residual[pivot])
        residual -= np.square(rows[r])
        residual[pivot] = 0.0
    return None


def has_low_rank(likelihood: Array, epsilon: float, rank: int) -> bool:
    """Whether `low_rank_factor` may succeed; False is certain, at the cost of a Cholesky of size rank + 1.

    Eigenvalues of a principal submatrix interlace: if one of size rank + 1 is positive definite by more than
    the tail that is allowed, more than `rank` columns are needed.
    """
    n = len(likelihood)
    if rank >= n:
        return True
    sample = np.arange(rank + 1) * n // (rank + 1)
    block = likelihood[np.ix_(sample, sample)]
    block.flat[:: rank + 2] -= TRUNCATION * epsilon
    try:
        np.linalg.cholesky(block)
    except np.linalg.LinAlgError:
        return True
    return False


def sample_k_dpp_spectrally(of: Spectrum, mixture: Mixture, rng: np.random.Generator) -> Indices:
    """One exact draw of the k-DPP; sorted."""
    tilt = best_tilt(partial(mean_size, of.eigenvalues), float(of.eigenvalues.sum()), mixture)
    core = sample_projection_dpp(of.vectors(_pick(of.eigenvalues, mixture, tilt, rng)), rng)
    return mixture.fill(core, rng)


def best_tilt(mean_size: Callable[[float], float], trace: float, mixture: Mixture) -> float:
    """The z at which the mean size is the size that the acceptance favours most: bisection in log z.

    As z grows to ``k / (ε n)``, the favoured size ``(k - z ε n) / (1 - z ε)`` falls to 0 and the mean size, at most
    ``z tr L'``, grows. Where a tiny ε makes sizes close to k likely, z says how close; the size itself could not.
    """
    n, k, epsilon = mixture.n, mixture.k, mixture.epsilon
    high = min(np.log(k) - np.log(epsilon) - np.log(n), _LARGEST_LOG)
    low = min(high - 1.0, np.log(0.5 * k / trace) if trace > 0.0 else high - 1.0)
    low = min(low, np.log(0.5 * k) - np.log(epsilon) - np.log(n - 0.5 * k))
    while high - low > 1e-6:
        middle = 0.5 * (low + high)
        z = float(np.exp(middle))
        enough = mean_size(z) * (1.0 - z * epsilon) > k - z * epsilon * n
        low, high = (low, middle) if enough else (middle, high)
    return float(np.exp(low))


def mean_size(eigenvalues: Array, tilt: float) -> float:
    """``E_z|T| = Σ z λ_i / (1 + z λ_i)``."""
    return float(_chances(eigenvalues, tilt).sum())


def _chances(eigenvalues: Array, tilt: float) -> Array:
    """``z λ / (1 + z λ)``, whatever the size of ``z λ``."""
    with np.errstate(divide="ignore", over="ignore"):
        chances: Array = 1.0 / (1.0 + 1.0 / (tilt * eigenvalues))
    return chances


def checked_eigenvalues(eigenvalues: NDArray[np.floating]) -> Array:
    """The same without rounding below zero.

    Raises
    ------
    ValueError
        If one is negative beyond rounding.
    """
    lowest, largest = float(eigenvalues.min()), float(eigenvalues.max())
    if lowest < -INDEFINITE * abs(largest) or largest < 0.0:
        shape = (len(eigenvalues),) * 2
        raise ValueError(
            f"likelihood {shape} must be positive semidefinite; its eigenvalues go from {lowest:.3g} to {largest:.3g}."
        )
    return np.maximum(eigenvalues.astype(np.float64, copy=False), 0.0)


def _pick(eigenvalues: Array, mixture: Mixture, tilt: float, rng: np.random.Generator) -> Indices:
    """Which eigenvectors take part: coins, accepted by their number."""
    chances = _chances(eigenvalues, tilt)
    accept = np.zeros(len(chances) + 1)
    acceptances = mixture.acceptances(tilt)[: len(accept)]
    accept[: len(acceptances)] = acceptances
    while True:
        tries = rng.random((_FLIPS, len(chances))) < chances
        passed = np.flatnonzero(rng.random(_FLIPS) < accept[tries.sum(axis=1)])
        if passed.size:
            return np.flatnonzero(tries[passed[0]])
