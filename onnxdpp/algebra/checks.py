"""What a likelihood kernel, a size and an epsilon must be; one line of ValueError each."""

import numpy as np
from numpy.typing import NDArray

_ASYMMETRY = 1e-9
# Negative eigenvalues and pivots down to this share of the largest are taken for rounding: a Gram summed in float32
# leaves 1e-9.
INDEFINITE = 1e-6


def check_likelihood(likelihood: NDArray[np.float64], name: str = "likelihood") -> None:
    """Refuse what is not a square, finite, symmetric matrix, in two matrix-vector products.

    ``L x`` and ``Lᵀ x`` for one fixed x without zeros: a NaN or infinity anywhere shows in the product, and a matrix
    for which the two agree is symmetric but for coincidences. Whether it is positive semidefinite is seen where it is
    factorised.
    """
    if likelihood.ndim != 2 or likelihood.shape[0] != likelihood.shape[1] or not likelihood.size:
        raise ValueError(f"{name} must be a square matrix, got shape {likelihood.shape}.")
    probe = 2.0 + np.cos(np.arange(len(likelihood)))
    with np.errstate(invalid="ignore", over="ignore"):
        down, across = likelihood @ probe, probe @ likelihood
    if not np.isfinite(down).all():
        bad = np.argwhere(~np.isfinite(likelihood))
        where = f"entry {tuple(bad[0].tolist())} is {likelihood[tuple(bad[0])]}" if len(bad) else "it overflows"
        raise ValueError(f"{name} {likelihood.shape} must be finite; {where} ({len(bad)} such).")
    if np.abs(down - across).max() > _ASYMMETRY * np.abs(down).max():
        gap = np.abs(likelihood - likelihood.T)
        i, j = (int(x) for x in np.unravel_index(gap.argmax(), gap.shape))
        raise ValueError(
            f"{name} {likelihood.shape} must be symmetric; "
            f"[{i}, {j}] is {likelihood[i, j]} and [{j}, {i}] is {likelihood[j, i]}."
        )


def check_size(k: int, n: int) -> None:
    """Refuse a k outside 1..n."""
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and the number of items {n}, got {k}.")


def check_epsilon(epsilon: float) -> None:
    """Refuse an epsilon that is not a positive finite number."""
    if not (np.isfinite(epsilon) and epsilon >= np.finfo(np.float64).tiny):
        raise ValueError(f"epsilon must be positive and finite, got {epsilon}.")
