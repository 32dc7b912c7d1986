"""Least-error selection of edges: every output of a projection chooses its own inputs.

- ``obs``: backward. An edge costs ``w_i² / (G_SS⁻¹)_ii``, w being the refit onto the edges that are left. One at
  a time that is n³ flops for each output; here edges go in rounds, a quarter of what is left in each, with an exact
  inverse and refit in between. The first round shares one inverse among all outputs, and drops more than a quarter
  where the exact rounds after it would take more than `FLOPS` for the layer (down to k at once, where need be).
- ``omp``: forward, one at a time: pivoted Cholesky whose pivot is the edge that gains most, ``r_i² / d_i`` with r what
  the residual has in common with input i and d_i what of input i the chosen ones do not span. O(n k²) for each output.

References
----------
E. Frantar, D. Alistarh: Optimal Brain Compression, NeurIPS 2022, arXiv:2208.11580.
Y. C. Pati, R. Rezaiifar, P. S. Krishnaprasad: Orthogonal Matching Pursuit, Asilomar 1993.
"""

from concurrent.futures import Executor
from functools import partial
from math import ceil

import numpy as np
from numpy.typing import NDArray

from onnxdpp.algebra.moments import Matrix, Moments
from onnxdpp.algebra.refit import ridge

Indices = NDArray[np.intp]

FLOPS = 1e11
"""What the rounds of one layer may take."""
SHRINK = 0.75
_CHUNK = 8  # outputs worked on together: a constant, so that sums do not depend on the machine
_LEAST_PIVOT = 1e-12


def eliminate_edges(moments: Moments, k: int, form: str, executor: Executor) -> Indices:
    """Choose k edges into each output, backward.

    Parameters
    ----------
    moments : Moments
    k : int
    form : {"affine", "linear"}
        Of the refit: with an intercept or without.
    executor : Executor

    Returns
    -------
    (k, m) integer array
        Column j: the inputs that output j keeps.
    """
    gram, cross = _normal(moments, k, form)
    n, m = cross.shape
    inverse = np.linalg.inv(gram)
    scores = (inverse @ cross) ** 2 / np.diagonal(inverse)[:, None]
    first = (FLOPS * (1 - SHRINK**3) / (2 * m)) ** (1 / 3)
    size = max(k, min(ceil(SHRINK * n), int(first)))
    kept = np.sort(np.argsort(-scores, axis=0, kind="stable")[:size], axis=0)
    chunks = [slice(low, low + _CHUNK) for low in range(0, m, _CHUNK)]
    shrink = partial(_shrink, gram, cross, kept, k)
    return np.concatenate(list(executor.map(shrink, chunks)), axis=1)


def _shrink(gram: Matrix, cross: Matrix, kept: Indices, k: int, columns: slice) -> Indices:
    """Drop edges of a few outputs, round by round."""
    left = kept[:, columns].T  # (outputs, size)
    outputs = np.arange(cross.shape[1])[columns]
    while left.shape[1] > k:
        inverse = np.linalg.inv(gram[left[:, :, None], left[:, None, :]])
        weights = np.matmul(inverse, cross[left, outputs[:, None]][:, :, None])[:, :, 0]
        scores = weights**2 / np.diagonal(inverse, axis1=1, axis2=2)
        size = max(k, min(left.shape[1] - 1, ceil(SHRINK * left.shape[1])))
        best = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :size], axis=1)
        left = np.take_along_axis(left, best, axis=1)
    return left.T


def pursue_edges(moments: Moments, k: int, form: str, executor: Executor) -> Indices:
    """Choose k edges into each output, forward.

    Parameters
    ----------
    moments, k, form, executor
        As for `eliminate_edges`.

    Returns
    -------
    (k, m) integer array
        Column j: the inputs that output j keeps, in order of choice.
    """
    gram, cross = _normal(moments, k, form)
    chosen = executor.map(partial(_pursue, gram, k), np.ascontiguousarray(cross.T))
    return np.stack(list(chosen), axis=1)


def _pursue(gram: Matrix, k: int, cross: Matrix) -> Indices:
    n = len(gram)
    residual, target = np.diagonal(gram).copy(), cross.copy()
    floor = _LEAST_PIVOT * residual
    factor = np.empty((k, n))
    chosen = np.empty(k, np.intp)
    for t in range(k):
        gains = np.where(residual > floor, target**2 / np.maximum(residual, floor + np.finfo(float).tiny), -1.0)
        gains[chosen[:t]] = -np.inf
        pivot = int(gains.argmax())
        chosen[t] = pivot
        row = factor[t]
        np.dot(factor[:t, pivot], factor[:t], out=row)
        np.subtract(gram[pivot], row, out=row)
        scale = np.sqrt(max(residual[pivot], floor[pivot], np.finfo(float).tiny))
        row /= scale
        target -= row * (target[pivot] / scale)
        residual -= row * row
    return chosen


def _normal(moments: Moments, k: int, form: str) -> tuple[Matrix, Matrix]:
    """G and C of the refit, its ridge in both."""
    gram = np.array(moments.covariance if form == "affine" else moments.gram)
    cross = np.array(moments.cross_covariance if form == "affine" else moments.cross)
    n = len(gram)
    strength = ridge(moments, k, form) * (float(np.trace(gram)) / n or 1.0)
    gram[np.diag_indices(n)] += strength
    return gram, cross + strength * moments.weights
