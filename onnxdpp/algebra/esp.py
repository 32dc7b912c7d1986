"""Elementary symmetric polynomials in log space.

``e_k(λ_1..λ_n) = Σ_{|J|=k} Π_{j∈J} λ_j`` normalises a k-DPP (eq. 187 of [1]_). At the sizes of real layers it leaves
float64 far behind (e_614 of a 3072 x 3072 CIFAR-10 edge kernel is 1e-531), and a table in which it is zero turns
into wrong samples; its logarithm is harmless.

References
----------
.. [1] A. Kulesza, B. Taskar, "Determinantal Point Processes for Machine Learning", Foundations and Trends in
   Machine Learning 5 (2012), arXiv:1207.6083, section 5.2.1, algorithm 7.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def log_esp(values: ArrayLike, k: int) -> Array:
    """Logarithms of the elementary symmetric polynomials of degree 0 to k.

    Parameters
    ----------
    values : (n,) array_like
        Non-negative numbers, eigenvalues usually.
    k : int
        Highest degree, >= 0. Degrees above n are empty sums: ``-inf``.

    Returns
    -------
    (k + 1,) float64 array
        ``log e_0 = 0, ..., log e_k``.

    Raises
    ------
    ValueError
        If a value is negative or not finite, or k is negative.

    Notes
    -----
    The recursion ``e_l(λ_1..λ_i) = e_l(λ_1..λ_{i-1}) + λ_i e_{l-1}(λ_1..λ_{i-1})`` with logaddexp: O(n k), all terms
    positive, hence no cancellation.

    Examples
    --------
    >>> np.exp(log_esp([1.0, 2.0, 3.0], 3)).round(12)
    array([ 1.,  6., 11.,  6.])
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or not np.all(np.isfinite(numbers)) or np.any(numbers < 0):
        raise ValueError(f"values must be a vector of finite numbers >= 0, got shape {numbers.shape}: {numbers}.")
    if k < 0:
        raise ValueError(f"k must be at least 0, got {k}.")
    logs = np.full(k + 1, -np.inf)
    logs[0] = 0.0
    # From the largest on: the running sums then meet terms of falling size, and zeros add nothing.
    for i, value in enumerate(np.sort(numbers[numbers > 0])[::-1]):
        top = min(i + 1, k)
        logs[1 : top + 1] = np.logaddexp(logs[1 : top + 1], logs[:top] + np.log(value))
    return logs
