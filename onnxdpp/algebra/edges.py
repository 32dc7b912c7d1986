"""The edges of a whole layer: one DPP for each output neuron, all from one Gram.

Output j of a projection with weights W (n, m) has the n edges ``w_sj x_s`` as its items. Its kernel needs nothing but
the Gram of the inputs and column j of W (`kernels`):

    rbf      L'_st = exp(-beta (a_s + a_t - 2 w_sj w_tj G_st)),   a_s = w_sj² G_ss
    linear   L'_st = w_sj w_tj Cov_st / mean_s(w_sj² Cov_ss)

The mode asks for k of its columns, O(n) each, so that no n x n matrix but G exists; a draw builds the kernel and one
factor. Outputs are independent, hence they run side by side, in fixed chunks of 16, on whatever executor is given.
Seeds are spawned per output and a sampler's memory ends with its chunk: the result does not depend on the workers.
BLAS should be held to one thread meanwhile (``threadpoolctl``): that is the caller's to do.

References
----------
.. [1] R. Acharyya, A. Chattoraj, B. Zhang, S. Das, D. Stefankovic, "Statistical Mechanical Analysis of
   Neural Network Pruning", UAI 2021, arXiv:2006.16617.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxdpp.algebra.checks import check_epsilon, check_likelihood, check_size
from onnxdpp.algebra.dpp import KDPPSampler
from onnxdpp.algebra.greedy import maximise_by_columns

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_CHUNK = 16
_ROWS = 64


@dataclass(frozen=True)
class EdgeKernel:
    """How the edges into one output resemble each other.

    Attributes
    ----------
    moments : (n, n) float64 array
        Of the inputs: the Gram (not centred) for rbf, the covariance for the linear kernel.
    beta : float or None
        Scale of the rbf kernel on mean squared distances; None makes the kernel linear.
    """

    moments: Array
    beta: float | None = None

    def diagonal(self, weights: Array) -> Array:
        """Diagonal of ``L'`` for the edges with these weights (n,)."""
        if self.beta is not None:
            return np.ones_like(weights)
        variances: Array = np.square(weights) * self.moments.diagonal()
        return variances * _inverse(float(variances.mean()))

    def rows(self, weights: Array) -> Callable[[slice], Array]:
        """Give a function that makes any rows of ``L'``, which is symmetric but for last bits, as a new array."""
        powers = np.square(weights) * self.moments.diagonal()
        if self.beta is None:
            right, offsets = weights * _inverse(float(powers.mean())), None
        else:
            right, offsets = 2.0 * self.beta * weights, -self.beta * powers

        def rows(which: slice) -> Array:
            panel: Array = self.moments[which] * right
            panel *= weights[which, None]
            if offsets is not None:
                panel += offsets
                panel += offsets[which, None]
                np.minimum(panel, 0.0, out=panel)
                np.exp(panel, out=panel)
            return panel

        return rows

    def column(self, weights: Array) -> Callable[[int], Array]:
        """Give a function that makes column i of ``L'`` (n,)."""
        rows = self.rows(weights)
        return lambda i: rows(slice(i, i + 1))[0]

    def matrix(self, weights: Array) -> Array:
        """Make the whole of ``L'`` (n, n), a few rows at a time, so that its pieces stay in cache."""
        rows = self.rows(weights)
        kernel = np.empty_like(self.moments)
        for low in range(0, len(kernel), _ROWS):
            kernel[low : low + _ROWS] = rows(slice(low, low + _ROWS))
        if self.beta is not None:
            np.fill_diagonal(kernel, 1.0)
        return kernel


def maximise_edges(
    kernel: EdgeKernel,
    weights: Array,
    k: int,
    *,
    epsilon: float,
    variances: Array | None = None,
    group: int | None = None,
    executor: Executor | None = None,
) -> Indices:
    """Greedy mode of the k-DPP over the edges into each output.

    Parameters
    ----------
    kernel : EdgeKernel
    weights : (n, m) float64 array
        Column j: the weights of the edges into output j.
    k : int
        Edges kept per output, 1 <= k <= n.
    epsilon : float
        Added to the diagonal of ``L'``, > 0.
    variances : (n,) float64 array, optional
        Of the inputs: ``w² · variance`` is what an edge contributes, which decides ties and the flat tail; without it,
        the diagonal of the moments.
    group : int, optional
        Keep k of every `group` consecutive inputs (``k=2, group=4`` is the pattern 2:4 of sparse tensor cores);
        greedily, as `greedy` says. Where `group` does not divide n, the last inputs are a group of their own.
    executor : concurrent.futures.Executor, optional
        Where the outputs run side by side; threads do, since nearly all the time is spent in BLAS. Without it,
        one after the other.

    Returns
    -------
    (k, m) intp array
        Column j: the inputs that output j keeps, in order of choice; every smaller k is ``[:k]`` of it. With
        `group`, as many rows as the groups keep together.

    Raises
    ------
    ValueError
        If an argument cannot be.

    Notes
    -----
    O(n k²) per output and n k numbers of memory per worker, beside the moments.
    """
    _check(kernel, weights, k, epsilon, group)
    if variances is None:
        variances = kernel.moments.diagonal()

    def one(w: Array) -> Indices:
        return maximise_by_columns(
            kernel.column(w), kernel.diagonal(w), k, epsilon=epsilon, contribution=np.square(w) * variances, group=group
        )

    return _by_chunks(lambda chunk: [one(np.ascontiguousarray(w)) for w in chunk], list(weights.T), executor)


def sample_edges(
    kernel: EdgeKernel,
    weights: Array,
    k: int,
    *,
    epsilon: float,
    seed: np.random.SeedSequence,
    executor: Executor | None = None,
) -> Indices:
    """Exact draw from the k-DPP over the edges into each output.

    Parameters
    ----------
    kernel, weights, k, epsilon, executor
        As for `maximise_edges`.
    seed : numpy.random.SeedSequence
        Output j draws with the j-th of the m seeds that a sequence of this entropy and key spawns first. The
        sequence itself is left as it is, so that it gives the same edges again.

    Returns
    -------
    (k, m) intp array
        Column j: the inputs that output j keeps, ascending.

    Raises
    ------
    ValueError
        If an argument cannot be.

    Notes
    -----
    About ``n³ / 3`` flops per output; two n x n matrices per worker, beside the moments.
    """
    _check(kernel, weights, k, epsilon)
    seeds = np.random.SeedSequence(seed.entropy, spawn_key=seed.spawn_key).spawn(weights.shape[1])

    def many(chunk: list[tuple[Array, np.random.SeedSequence]]) -> list[Indices]:
        sampler = KDPPSampler(epsilon)
        return [sampler.draw(kernel.matrix(np.ascontiguousarray(w)), k, np.random.default_rng(s))[0] for w, s in chunk]

    return _by_chunks(many, list(zip(weights.T, seeds, strict=True)), executor)


def _by_chunks(work: Callable[[Any], list[Indices]], outputs: Sequence[Any], executor: Executor | None) -> Indices:
    """What `work` makes of fixed chunks of outputs, one column for each; wherever the chunks run."""
    chunks = [outputs[low : low + _CHUNK] for low in range(0, len(outputs), _CHUNK)]
    results = map(work, chunks) if executor is None else executor.map(work, chunks)
    return np.stack([kept for chunk in results for kept in chunk], axis=1)


def _inverse(mean: float) -> float:
    """1 / mean, or 0 where nothing varies: such a kernel is 0."""
    return 1.0 / mean if mean > 0.0 else 0.0


def _check(kernel: EdgeKernel, weights: Array, k: int, epsilon: float, group: int | None = None) -> None:
    check_likelihood(kernel.moments, "moments")
    check_epsilon(epsilon)
    n = len(kernel.moments)
    if weights.ndim != 2 or weights.shape[0] != n or not weights.shape[1] or not np.isfinite(weights).all():
        raise ValueError(f"weights must be finite, ({n}, m) with m >= 1, got shape {weights.shape}.")
    check_size(k, n if group is None else group)
