"""The least-squares step: what the dropped inputs carried moves into the kept ones.

For the kept inputs S of a projection, and in the words of `moments`, the new weights are

    W_S = W0_S + (G_SS + λ I)⁻¹ (C_S - G_SS W0_S),      λ = ridge · tr(G_SS) / k

Directions that the rows do not determine (an input that is dead on them) keep their original weights. The *affine*
form takes centred G and C and gives the intercept ``mean_y - mean_x[S] W_S``; the *linear* form is the papers' own,
without intercept and with λ → 0. The error of any weights is closed form too, so no model needs to run to know it:

    E(x·w + b - y)² = wᵀG w - 2 wᵀC + E[y²] + b² + 2 b (mean_x·w - E[y])

References
----------
Z. Mariet, S. Sra: Diversity Networks, ICLR 2016, arXiv:1511.05077 (section 3.2, fusing).
R. Acharyya, A. Chattoraj, B. Zhang, S. Das, D. Stefankovic: Statistical Mechanical Analysis of Neural Network Pruning,
UAI 2021, arXiv:2006.16617 (section 3.3, reweighting).
"""

from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from onnxdpp.algebra.moments import ROUNDING, Matrix, Moments

FORMS = ("affine", "linear", "none")
# The linear form is the limit λ → 0, as near as a Cholesky in float64 can come to it.
RIDGE = {"affine": 1e-6, "linear": 1e-10}
# With hardly more rows than unknowns least squares follows the noise of the rows: the affine form holds it back.
SCARCE = 2  # rows for each kept input
SCARCE_RIDGE = 1e-2
ATTEMPTS = 8


@dataclass(frozen=True)
class Fit:
    """New weights of one projection.

    Attributes
    ----------
    weights : (n, m) float64 array
        Zero where the input (or the edge) is dropped.
    intercept : (m,) float64 array or None
        What is added to the bias; None unless the form is affine.
    """

    weights: Matrix
    intercept: Matrix | None


def cut(moments: Moments, keep: NDArray[np.intp]) -> Fit:
    """The original weights of the kept inputs, nothing else: the papers' pruning without fusing.

    Parameters
    ----------
    moments : Moments
    keep : (k,) integer array
    """
    weights = np.zeros_like(moments.weights)
    weights[keep] = moments.weights[keep]
    return Fit(weights, None)


def refit_neurons(moments: Moments, keep: NDArray[np.intp], form: str, strength: float | None = None) -> Fit:
    """Weights of a consumer of which only the inputs `keep` are left.

    Parameters
    ----------
    moments : Moments
    keep : (k,) integer array
        The kept inputs, the same for every output.
    form : {"affine", "linear", "none"}
    strength : float, optional
        The ridge, in units of the mean diagonal of the Gram; see `ridge` for what it is otherwise.

    Notes
    -----
    One Cholesky factorisation: k³/3 + 2 k² m flops.
    """
    if form == "none":
        return cut(moments, keep)
    gram, cross = _centred(moments, form)
    weights = np.zeros_like(moments.weights)
    strength = ridge(moments, len(keep), form) if strength is None else strength
    weights[keep] = _solve(gram[np.ix_(keep, keep)], cross[keep], moments.weights[keep], strength)
    return _with_intercept(moments, weights, form)


def refit_edges(
    moments: Moments, kept: NDArray[np.intp], form: str, executor: Executor, strength: float | None = None
) -> Fit:
    """Weights of a projection of which every output keeps edges of its own.

    Parameters
    ----------
    moments : Moments
    kept : (k, m) integer array
        Column j: the inputs that output j keeps. Where that is room for all that have a weight, what is zero stays so.
    form : {"affine", "linear", "none"}
    executor : Executor
        Where the outputs, each a problem of its own, are solved side by side.
    strength : float, optional
        The ridge, as in `refit_neurons`.

    Notes
    -----
    One Cholesky factorisation of size k for each output: m (k³/3 + n k) flops.
    """
    outputs = np.arange(kept.shape[1])
    weights = np.zeros_like(moments.weights)
    if form == "none":
        weights[kept, outputs] = moments.weights[kept, outputs]
        return Fit(weights, None)
    gram, cross = _centred(moments, form)
    strength = ridge(moments, len(kept), form) if strength is None else strength
    solve = partial(_solve_edge, gram, cross, moments.weights, strength)
    free = [_carrying(keep, moments.weights[:, j]) for j, keep in enumerate(kept.T)]
    for j, solved in enumerate(executor.map(solve, outputs, free)):
        weights[free[j], j] = solved
    return _with_intercept(moments, weights, form)


def is_scarce(count: int, k: int) -> bool:
    """Whether `count` rows are too few to determine the weights of k kept inputs well."""
    return count < SCARCE * k


def ridge(moments: Moments, k: int, form: str) -> float:
    """λ of a refit onto k inputs, in units of the mean diagonal of its Gram."""
    return SCARCE_RIDGE if form == "affine" and is_scarce(moments.count, k) else RIDGE[form]


def squared_error(moments: Moments, fit: Fit) -> Matrix:
    """(m,): mean squared error of each output, bias included, against the original's.

    Parameters
    ----------
    moments : Moments
    fit : Fit
    """
    weights = fit.weights
    used = np.flatnonzero(weights.any(axis=1))
    products = moments.gram[np.ix_(used, used)] @ weights[used] - 2 * moments.cross[used]
    error = np.einsum("ij,ij->j", weights[used], products) + moments.power_y
    if fit.intercept is not None:
        bias = fit.intercept
        error += bias * (bias + 2 * (moments.mean_x @ weights - moments.mean_y))
    positive: Matrix = np.maximum(error, 0.0)
    return positive


def relative_loss(parts: Iterable[tuple[Moments, Fit]]) -> float | None:
    """``sqrt(E‖Ŷ - Y‖² / E‖Y - Ȳ‖²)`` over all consumers together.

    Parameters
    ----------
    parts : iterable of (Moments, Fit), one for each consumer

    Returns
    -------
    float or None
        0 is perfect, 1 as bad as a constant. None where the original's outputs do not vary, but the new ones err.
    """
    error = variance = magnitude = 0.0
    for moments, fit in parts:
        error += float(squared_error(moments, fit).sum())
        variance += float(moments.variance_y.sum())
        magnitude += float(moments.magnitude_y.sum())
    if variance > 0:
        return float(np.sqrt(error / variance))
    return 0.0 if error <= ROUNDING * magnitude else None


def _centred(moments: Moments, form: str) -> tuple[Matrix, Matrix]:
    if form == "affine":
        return moments.covariance, moments.cross_covariance
    return moments.gram, moments.cross


def _with_intercept(moments: Moments, weights: Matrix, form: str) -> Fit:
    if form != "affine":
        return Fit(weights, None)
    intercept = moments.mean_y - moments.mean_x @ weights
    # What is rounding of large means may be large beside the bias it would be added to.
    rounding = ROUNDING * (np.abs(moments.mean_y) + np.abs(moments.mean_x) @ np.abs(weights))
    return Fit(weights, np.where(np.abs(intercept) > rounding, intercept, 0.0))


def _carrying(keep: NDArray[np.intp], weights: Matrix) -> NDArray[np.intp]:
    """The kept edges of one output that may have a weight: none of what was pruned before comes back for nothing."""
    return keep if np.count_nonzero(weights) > len(keep) else keep[weights[keep] != 0]


def _solve_edge(
    gram: Matrix, cross: Matrix, weights: Matrix, strength: float, output: int, keep: NDArray[np.intp]
) -> Matrix:
    return _solve(gram[np.ix_(keep, keep)], cross[keep, output], weights[keep, output], strength)


def _solve(gram: Matrix, cross: Matrix, weights: Matrix, strength: float) -> Matrix:
    """``weights + (gram + λ I)⁻¹ (cross - gram weights)`` for a positive semidefinite (k, k) Gram."""
    missing = cross - gram @ weights
    scale = float(np.trace(gram)) / (len(gram) or 1)
    if scale <= 0 or not missing.any():
        return weights
    # Where rounding made the Gram indefinite by more than the ridge, a larger one is still tiny.
    for factor in 10.0 ** np.arange(ATTEMPTS):
        try:
            lower = cho_factor(gram + factor * strength * scale * np.eye(len(gram)), lower=True, check_finite=False)
        except LinAlgError:
            continue
        return weights + np.asarray(cho_solve(lower, missing, check_finite=False))
    raise ValueError(f"a ({len(gram)}, {len(gram)}) Gram is not positive semidefinite, or not finite")
