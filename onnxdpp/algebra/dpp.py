"""k-DPPs of kernels ``L = L' + epsilon I``: exact draws, the mode, likelihoods.

A k-DPP draws a set S of k items out of n with probability ``det(L_S) / e_k(eigenvalues of L)``: the squared
volume that the items' features span, so that alike items seldom stay together [1]_. ``L'`` (n, n) is a likelihood
kernel without epsilon; epsilon keeps every set possible where ``L'`` has not the rank.

* `sample_k_dpp`, `KDPPSampler` draw, exactly (`mixture`, `routes`, `cholesky`, `spectral`);
* `maximise_k_dpp` takes the mode, greedily (`greedy`);
* `log_likelihood`, `expected_size`, `log_esp` say how likely and how many (`esp`).

All is float64. Results depend on the number of BLAS threads in their last bits, hence a draw may, too: hold
it (``threadpoolctl``) where the same seed must give the same items.

References
----------
.. [1] A. Kulesza, B. Taskar, "Determinantal Point Processes for Machine Learning", Foundations and Trends in
   Machine Learning 5 (2012), arXiv:1207.6083.
"""

import numpy as np
from numpy.typing import NDArray

from onnxdpp.algebra.checks import check_epsilon, check_likelihood, check_size
from onnxdpp.algebra.esp import log_esp
from onnxdpp.algebra.greedy import maximise_by_columns, maximise_k_dpp
from onnxdpp.algebra.mixture import Mixture
from onnxdpp.algebra.routes import draw_by_best_route
from onnxdpp.algebra.spectral import checked_eigenvalues

__all__ = [
    "KDPPSampler",
    "expected_size",
    "log_esp",
    "log_likelihood",
    "maximise_by_columns",
    "maximise_k_dpp",
    "sample_k_dpp",
]

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


class KDPPSampler:
    """Draws from the k-DPPs of kernels that resemble each other, as those of a layer's outputs do.

    What one kernel taught about the size of the core (the tilt, `mixture`) is where the next one begins: it
    saves a factorisation or two and changes no law. The items drawn do depend on it, so that a sampler
    belongs to one sequence of kernels.

    Parameters
    ----------
    epsilon : float
        On the diagonal, > 0.

    Raises
    ------
    ValueError
        If epsilon is not positive and finite.
    """

    def __init__(self, epsilon: float) -> None:
        check_epsilon(epsilon)
        self.epsilon = epsilon
        self._tilt: float | None = None

    def draw(self, likelihood: Array, k: int, rng: np.random.Generator, draws: int = 1) -> Indices:
        """Draw (draws, k) sorted indices, as `sample_k_dpp` does, from a kernel known to be symmetric and finite."""
        n = len(likelihood)
        check_size(k, n)
        if draws < 1:
            raise ValueError(f"draws must be at least 1, got {draws}.")
        if k == n:
            return np.tile(np.arange(n, dtype=np.intp), (draws, 1))
        kept, self._tilt = draw_by_best_route(likelihood, Mixture(n, k, self.epsilon), rng, draws, self._tilt)
        return kept


def sample_k_dpp(likelihood: Array, k: int, *, epsilon: float, rng: np.random.Generator, draws: int = 1) -> Indices:
    """Draw k items with probability proportional to ``det((L' + epsilon I)_S)``.

    Parameters
    ----------
    likelihood : (n, n) float64 array
        ``L'``, symmetric positive semidefinite, without epsilon.
    k : int
        Number of items, 1 <= k <= n.
    epsilon : float
        Added to the diagonal, > 0.
    rng : numpy.random.Generator
    draws : int, default 1
        Number of independent draws.

    Returns
    -------
    (k,) intp array, or (draws, k) where draws > 1
        Sorted indices.

    Raises
    ------
    ValueError
        If `likelihood` is not square, not symmetric or not finite, or a factorisation finds it not positive
        semidefinite; if k, epsilon or draws is out of range.

    Notes
    -----
    Exact for every k (the low-rank route to 1e-8 in total variation). One draw costs a Cholesky factorisation or two,
    n³/3 flops each, and n t² for its core of t items; further draws only the latter. See `routes`.

    Examples
    --------
    >>> twins = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> kept = sample_k_dpp(twins, 2, epsilon=1e-6, rng=np.random.default_rng(0), draws=100)
    >>> sorted({tuple(pair) for pair in kept.tolist()})
    [(0, 2), (1, 2)]
    """
    check_likelihood(likelihood)
    kept = KDPPSampler(epsilon).draw(likelihood, k, rng, draws)
    return kept[0] if draws == 1 else kept


def log_likelihood(likelihood: Array, subset: NDArray[np.integer], epsilon: float) -> float:
    """Logarithm of the probability of a subset under the k-DPP of its size.

    Parameters
    ----------
    likelihood : (n, n) float64 array
        ``L'``, symmetric positive semidefinite, without epsilon.
    subset : (k,) integer array
        Distinct indices, in any order.
    epsilon : float
        Added to the diagonal, > 0.

    Returns
    -------
    float
        ``log det((L' + εI)_S) - log e_k(eigenvalues of L' + εI)`` (eq. 186 and 187 of [1]_), at most 0.

    Raises
    ------
    ValueError
        If an argument cannot be.

    Examples
    --------
    >>> round(float(np.exp(log_likelihood(np.zeros((4, 4)), np.array([1, 3]), 0.01))), 12)
    0.166666666667
    """
    check_likelihood(likelihood)
    check_epsilon(epsilon)
    n, k = len(likelihood), len(subset)
    check_size(k, n)
    if len(np.unique(subset)) < k or subset.min() < 0 or subset.max() >= n:
        raise ValueError(f"subset must be distinct indices below {n}, got {subset}.")
    eigenvalues = checked_eigenvalues(np.linalg.eigvalsh(likelihood)) + epsilon
    log_det = np.linalg.slogdet(likelihood[np.ix_(subset, subset)] + epsilon * np.eye(k))[1]
    return float(log_det - log_esp(eigenvalues, k)[k])


def expected_size(likelihood: Array, epsilon: float) -> float:
    """Mean number of items in a draw from the DPP (of no fixed size) of ``L' + epsilon I``.

    Parameters
    ----------
    likelihood : (n, n) float64 array
        ``L'``, symmetric positive semidefinite, without epsilon.
    epsilon : float
        Added to the diagonal, > 0.

    Returns
    -------
    float
        ``Σ λ_i / (1 + λ_i)`` over the eigenvalues of ``L' + εI`` (eq. 34 of [1]_): how many items the kernel itself
        finds different.

    Raises
    ------
    ValueError
        If an argument cannot be.

    Examples
    --------
    >>> expected_size(np.zeros((4, 4)), 1.0)
    2.0
    """
    check_likelihood(likelihood)
    check_epsilon(epsilon)
    eigenvalues = checked_eigenvalues(np.linalg.eigvalsh(likelihood)) + epsilon
    return float((eigenvalues / (1.0 + eigenvalues)).sum())
