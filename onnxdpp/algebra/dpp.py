"""k-DPPs of kernels ``L = L' + epsilon I``: exact draws, the mode, likelihoods."""

import logging

import numpy as np
from numpy.typing import NDArray

from onnxdpp.algebra.checks import check_epsilon, check_likelihood, check_size
from onnxdpp.algebra.esp import log_esp
from onnxdpp.algebra.greedy import maximise_by_columns, maximise_k_dpp
from onnxdpp.algebra.sampling import checked_spectrum, sample_spectrally

__all__ = [
    "expected_size",
    "log_esp",
    "log_likelihood",
    "maximise_by_columns",
    "maximise_k_dpp",
    "sample_k_dpp",
]

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_log = logging.getLogger(__name__)


def sample_k_dpp(
    likelihood: Array, k: int, *, epsilon: float, rng: np.random.Generator, draws: int = 1
) -> Indices:
    """Draw k items with probability proportional to ``det((L' + epsilon I)_S)``."""
    check_likelihood(likelihood)
    n = len(likelihood)
    check_size(k, n)
    check_epsilon(epsilon)
    kept = sample_spectrally(likelihood, k, epsilon=epsilon, rng=rng, draws=draws)
    return kept[0] if draws == 1 else kept


def log_likelihood(likelihood: Array, subset: NDArray[np.integer], epsilon: float) -> float:
    """Logarithm of the probability of a subset under the k-DPP of its size."""
    check_likelihood(likelihood)
    check_size(len(subset), len(likelihood))
    check_epsilon(epsilon)
    inner = likelihood[np.ix_(subset, subset)] + epsilon * np.eye(len(subset))
    sign, log_det = np.linalg.slogdet(inner)
    if sign <= 0:
        return -np.inf
    eigenvalues = checked_spectrum(np.linalg.eigvalsh(likelihood)) + epsilon
    return float(log_det - log_esp(eigenvalues, len(subset))[-1])


def expected_size(likelihood: Array, epsilon: float) -> float:
    """Mean number of items in a draw from the DPP of ``L' + epsilon I``."""
    check_likelihood(likelihood)
    check_epsilon(epsilon)
    eigenvalues = checked_spectrum(np.linalg.eigvalsh(likelihood)) + epsilon
    return float((eigenvalues / (1.0 + eigenvalues)).sum())
