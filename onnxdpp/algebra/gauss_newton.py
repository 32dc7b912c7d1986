"""Gauss-Newton steps for the weights of one projection, so that a model's outputs come nearer to what they were.

Row r of the data enters the projection as x_r (n,); to first order its outputs move the model's by J_r (s, m). With the
errors e_r (s,) that are left at the model's outputs, the step ``D`` (n, m), and ``d`` (m,) of the bias, minimises

    sum_r ‖ e_r - J_r (Dᵀ x_r + d) ‖² + ridge

The normal matrix, ``sum_r x_r x_rᵀ ⊗ J_rᵀ J_r``, has (n m)² entries and is never formed: conjugate gradients multiply
by it at the cost of two products with X and two with the J_r. They are preconditioned by its diagonal, which the ridge
is relative to, and *stopped early*: each number of iterations is a step of its own, the fewer the tamer, and whoever
holds rows out says which is best. None solves the linearised problem to the end: a curved model would not follow.

References
----------
J. Nocedal and S. J. Wright, "Numerical Optimization", 2nd ed., Springer 2006, section 10.3 (Gauss-Newton),
algorithm 5.3 (preconditioned conjugate gradients). M. Hanke, "Conjugate Gradient Type Methods for Ill-Posed Problems",
Longman 1995 (early stopping as regularisation).
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxdpp.algebra.moments import Matrix

ITERATIONS = (4, 8, 16, 32, 64)
RIDGE = 1e-2
DONE = 1e-20  # of the gradient's square, at the start: what is left is rounding
FLOOR = 1e-9  # of the largest entry of the diagonal, for weights that nothing feels


def steps(
    x: Matrix,
    errors: Matrix,
    jacobians: Matrix,
    free: NDArray[np.bool_] | None = None,
    *,
    intercept: bool = True,
    iterations: Sequence[int] = ITERATIONS,
) -> Iterator[tuple[Matrix, Matrix | None]]:
    """Steps from tame to bold.

    Parameters
    ----------
    x : (r, n) float64 array
        What enters the projection.
    errors : (r, s) float64 array
        What is missing at the model's outputs.
    jacobians : (r, s, m) float64 array
    free : (n, m) boolean array, optional
        Weights that may move; the others stay as they are. Default: all.
    intercept : bool
        Whether the bias may move.
    iterations : increasing sequence of int

    Yields
    ------
    (n, m) float64 array, (m,) float64 array or None
        What is added to the weights, and to the bias.

    Examples
    --------
    One linear layer is solved exactly, but for the ridge:

    >>> rng = np.random.default_rng(0)
    >>> x, wanted = rng.normal(size=(100, 3)), rng.normal(size=(3, 2))
    >>> eye = np.broadcast_to(np.eye(2), (100, 2, 2))
    >>> *_, (found, _) = steps(x, x @ wanted, eye)
    >>> bool(np.abs(found - wanted).max() < 0.05)
    True
    """
    x = np.hstack([x, np.ones((len(x), 1))]) if intercept else x
    diagonal = (x**2).T @ np.einsum("rsm,rsm->rm", jacobians, jacobians)
    scale = 1 / np.sqrt(diagonal + FLOOR * diagonal.max() + np.finfo(float).tiny)
    if free is not None:
        scale[: len(free)] *= free

    def back(found: Matrix) -> Matrix:
        return np.asarray(scale * (x.T @ np.matmul(found[:, None, :], jacobians)[:, 0, :]))

    def normal(step: Matrix) -> Matrix:
        moved = np.matmul(jacobians, (x @ (scale * step))[:, :, None])[:, :, 0]
        return back(moved) + RIDGE * step

    rest = back(errors)
    step, way, size = np.zeros_like(rest), rest.copy(), float((rest**2).sum())
    enough = DONE * size
    for count in range(1, max(iterations) + 1):
        turned = normal(way)
        curvature = float((way * turned).sum())
        if not (size > 0 and curvature > 0 and np.isfinite(curvature)):  # nothing is missing, or nothing helps
            return
        length = size / curvature
        step = step + length * way
        rest = rest - length * turned
        size, before = float((rest**2).sum()), size
        way = rest + size / before * way
        if count in iterations or size <= enough:
            found = scale * step
            yield (found[:-1], found[-1]) if intercept else (found, None)
        if size <= enough:
            return
