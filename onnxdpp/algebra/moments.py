"""Second moments of what enters a projection and of what it ought to give: all that pruning needs of the data.

With rows as observations, X (r, n) is what enters the projection in the model as pruned so far, X_o (r, n) what
enters it in the original, and Y = X_o W0 (r, m) what the original gave before its bias. Kept are, in float64,

    G = XᵀX / r      C = XᵀY / r      mean_x      mean_y      power_y = diag(YᵀY) / r

They are sums over rows: they do not depend on how rows are cut into blocks, and two of them merge. Where nothing
upstream has changed, X = X_o, so that C = G W0 and nothing but G is summed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk

Matrix = NDArray[np.float64]
# Squares that leave float64 become infinite moments: the caller looks for those once, at the end.
_letting_overflow = np.errstate(over="ignore", invalid="ignore")
BLOCK = 2048  # rows converted to float64 at a time
LEAST = 256  # rows summed at a time, where fewer come at once
# A variance below this share of the mean square is rounding: the value is constant.
ROUNDING = 1e-12


class Accumulator:
    """Sums the moments of one projection, block by block.

    Parameters
    ----------
    weights : (n, m) float64 array
        W0, the original matrix.
    paired : bool
        Whether the rows of the original differ from those of the model as pruned so far.
    left : (k,) integer array, optional
        The inputs that are left in the model as pruned so far, where some are gone; only when paired.
    between : bool
        Whether the second moments between outputs are wanted too.

    Attributes
    ----------
    count : int
        Rows so far.

    Notes
    -----
    Cost per row: n² flops (the symmetric half of XᵀX), and 4 n m more when paired, and m² more with those between
    outputs. Memory: n² + n m (+ m²) float64.
    """

    def __init__(
        self, weights: Matrix, *, paired: bool, left: NDArray[np.intp] | None = None, between: bool = False
    ) -> None:
        m = weights.shape[1]
        self._weights = weights
        self._left = weights if left is None else weights[left]
        self._paired = paired
        n = len(self._left)
        self.count = 0
        self._waiting: list[tuple[NDArray[np.floating], NDArray[np.floating] | None]] = []
        self._rows = 0
        self._sum_x = np.zeros(n)
        # One triangle, in the column order that BLAS adds to in place.
        self._squares = np.zeros((n, n), order="F")
        self._sum_y = np.zeros(m)
        self._cross = np.zeros((n, m) if paired else (0, 0))
        self._power_y = np.zeros(m)
        self._between = between
        self._products_y = np.zeros((m, m) if between and paired else (0, 0), order="F")

    @_letting_overflow
    def update(self, x: NDArray[np.floating], original: NDArray[np.floating] | None = None) -> None:
        """Add rows.

        Parameters
        ----------
        x : (r, n) array, any float type
            What enters the projection in the model as pruned so far; (r, k) where k inputs are left.
        original : (r, n) array, optional
            What enters it in the original model; only when paired.
        """
        if self._paired != (original is not None):
            raise ValueError("`original` is given exactly when the moments are paired")
        self.count += len(x)
        self._waiting.append((x, original))
        self._rows += len(x)
        if self._rows >= LEAST:
            self._sum()

    def _sum(self) -> None:
        """Add what waits to the sums: a few rows at a time would keep BLAS from its work."""
        waiting, self._waiting, self._rows = self._waiting, [], 0
        if not waiting:
            return
        x = waiting[0][0] if len(waiting) == 1 else np.concatenate([part for part, _ in waiting])
        others = [part for _, part in waiting if part is not None]
        original = None if not others else others[0] if len(others) == 1 else np.concatenate(others)
        for start in range(0, len(x), BLOCK):
            rows = np.ascontiguousarray(x[start : start + BLOCK], np.float64)
            self._squares = dsyrk(1.0, rows.T, beta=1.0, c=self._squares, overwrite_c=1)
            self._sum_x += rows.sum(0)
            if original is not None:
                y = np.asarray(original[start : start + BLOCK], np.float64) @ self._weights
                self._cross += rows.T @ y
                self._sum_y += y.sum(0)
                self._power_y += np.einsum("ij,ij->j", y, y)
                if self._between:
                    self._products_y = dsyrk(1.0, y.T, beta=1.0, c=self._products_y, overwrite_c=1)

    @_letting_overflow
    def merge(self, other: Accumulator) -> None:
        """Add the rows of another accumulator of the same projection."""
        self._sum()
        other._sum()
        self.count += other.count
        self._sum_x += other._sum_x
        self._squares += other._squares
        self._cross += other._cross
        self._sum_y += other._sum_y
        self._power_y += other._power_y
        self._products_y += other._products_y

    @_letting_overflow
    def moments(self) -> Moments:
        """The means over all rows so far; see `Moments.is_finite`."""
        if self.count == 0:
            raise ValueError("no rows were added")
        self._sum()
        gram = _whole(self._squares) / self.count
        mean_x = self._sum_x / self.count
        if self._paired:
            cross, mean_y, power_y = (part / self.count for part in (self._cross, self._sum_y, self._power_y))
        else:
            cross = gram @ self._weights
            mean_y = mean_x @ self._weights
            power_y = np.einsum("ij,ij->j", self._weights, cross)
        square_y = None
        if self._between:
            square_y = _whole(self._products_y) / self.count if self._paired else self._weights.T @ cross
        return Moments(self.count, self._left, gram, mean_x, cross, mean_y, power_y, square_y)


def _whole(triangle: Matrix) -> Matrix:
    """A symmetric matrix, from its upper triangle and zeros."""
    whole: Matrix = np.triu(triangle, 1).T
    whole += triangle
    return whole


@dataclass(frozen=True)
class Moments:
    """Second moments of one projection.

    Attributes
    ----------
    count : int
        Rows they are the means of.
    weights : (n, m) float64 array
        W0, the original matrix.
    gram : (n, n) float64 array
        G = E[x xᵀ].
    mean_x : (n,) float64 array
    cross : (n, m) float64 array
        C = E[x yᵀ].
    mean_y, power_y : (m,) float64 arrays
        E[y] and E[y²].
    square_y : (m, m) float64 array or None
        E[y yᵀ], where it was wanted.
    """

    count: int
    weights: Matrix
    gram: Matrix
    mean_x: Matrix
    cross: Matrix
    mean_y: Matrix
    power_y: Matrix
    square_y: Matrix | None = None

    def through(self, root: Matrix) -> Moments:
        """The moments of the same inputs and of the outputs y·root, where `square_y` is known.

        Parameters
        ----------
        root : (m, q) float64 array
            With ``root rootᵀ = M``, squared errors of the new outputs sum up to ``eᵀ M e`` of the old ones.
        """
        if self.square_y is None:
            raise ValueError("the second moments between outputs were not wanted")
        return Moments(
            self.count,
            self.weights @ root,
            self.gram,
            self.mean_x,
            self.cross @ root,
            self.mean_y @ root,
            np.maximum(np.einsum("ij,ij->j", root, self.square_y @ root), 0),
        )

    def merged(self, other: Moments) -> Moments:
        """The moments of the rows of both, of the same inputs and outputs."""
        share = self.count / (self.count + other.count)

        def mean(mine: Matrix, theirs: Matrix) -> Matrix:
            return share * mine + (1 - share) * theirs

        return Moments(
            self.count + other.count,
            self.weights,
            mean(self.gram, other.gram),
            mean(self.mean_x, other.mean_x),
            mean(self.cross, other.cross),
            mean(self.mean_y, other.mean_y),
            mean(self.power_y, other.power_y),
            None if self.square_y is None or other.square_y is None else mean(self.square_y, other.square_y),
        )

    @property
    def is_finite(self) -> bool:
        """Whether float64 could hold the squares of the rows."""
        parts = (self.gram, self.cross, self.power_y, *([] if self.square_y is None else [self.square_y]))
        return all(bool(np.isfinite(part).all()) for part in parts)

    @cached_property
    def covariance(self) -> Matrix:
        """(n, n): G - mean_x mean_xᵀ, what an intercept leaves to be explained; exactly 0 at constant inputs."""
        centred: Matrix = self.gram - np.outer(self.mean_x, self.mean_x)
        constant = self.variance_x == 0
        centred[constant] = 0
        centred[:, constant] = 0
        return centred

    @cached_property
    def cross_covariance(self) -> Matrix:
        """(n, m): C - mean_x mean_yᵀ; exactly 0 at constant inputs."""
        centred: Matrix = self.cross - np.outer(self.mean_x, self.mean_y)
        centred[self.variance_x == 0] = 0
        return centred

    @cached_property
    def variance_x(self) -> Matrix:
        """(n,): variance of each input; exactly 0 where it is no more than rounding."""
        power = np.diag(self.gram)
        return _beyond_rounding(power - self.mean_x**2, power)

    @cached_property
    def variance_y(self) -> Matrix:
        """(m,): variance of each output of the original; exactly 0 where it is no more than rounding."""
        return _beyond_rounding(self.power_y - self.mean_y**2, self.magnitude_y)

    @cached_property
    def magnitude_y(self) -> Matrix:
        """(m,): at least E[y²], what rounding in it and in errors is relative to: its terms may cancel."""
        terms = np.sqrt(np.diag(self.gram)) @ np.abs(self.weights)
        magnitude: Matrix = np.maximum(self.power_y, terms**2)
        return magnitude


def _beyond_rounding(variance: Matrix, power: Matrix) -> Matrix:
    return np.where(variance > ROUNDING * power, variance, 0.0).astype(np.float64, copy=False)
