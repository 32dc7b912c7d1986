"""Several draws over the edges into each neuron, with the work that they have in common done once.

Nearly all of an exact draw is its kernel and one Cholesky factor; on CIFAR-10's 3072 inputs ten draws cost a quarter
more than one. So all repeats of a point are drawn together, neuron by neuron. They are the package's own draws
(`onnxdpp.algebra.dpp.KDPPSampler`), independent and exact; only the random numbers come in another order than in
`onnxdpp.prune`, so that a seed gives other edges there.
"""

from concurrent.futures import Executor

import numpy as np
from numpy.random import SeedSequence, default_rng
from numpy.typing import NDArray

from onnxdpp.algebra.dpp import KDPPSampler
from onnxdpp.algebra.edges import EdgeKernel
from onnxdpp.algebra.moments import Matrix

Indices = NDArray[np.intp]

CHUNK = 16  # outputs of one sampler, which learns from one kernel for the next: fixed, so that threads do not matter


def draw_edges(
    gram: Matrix,
    weights: Matrix,
    k: int,
    repeats: int,
    *,
    beta: float,
    epsilon: float,
    seed: int,
    executor: Executor,
) -> Indices:
    """Independent draws over the edges into each output.

    Parameters
    ----------
    gram : (n, n) float64 array
        Of the inputs, not centred.
    weights : (n, m) float64 array
    k : int
        Edges that each output keeps.
    repeats : int
    beta, epsilon : float
        Of the rbf kernel of what the edges carry.
    seed : int
    executor : Executor
        Where chunks of outputs are drawn side by side.

    Returns
    -------
    (repeats, k, m) integer array
        Those of output j in [:, :, j], sorted.
    """
    kernel = EdgeKernel(gram, beta)
    m = weights.shape[1]

    def chunk(low: int) -> list[Indices]:
        sampler = KDPPSampler(epsilon)
        drawn = []
        for j in range(low, min(low + CHUNK, m)):
            likelihood = kernel.matrix(np.ascontiguousarray(weights[:, j]))
            rng = default_rng(SeedSequence(seed, spawn_key=(j,)))
            drawn.append(sampler.draw(likelihood, k, rng, draws=repeats))
        return drawn

    return np.stack([drawn for part in executor.map(chunk, range(0, m, CHUNK)) for drawn in part], axis=2)
