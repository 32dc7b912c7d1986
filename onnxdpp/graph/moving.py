"""What a projection computes, moved a little: by one of its outputs, or by one of its weights.

Where each row of the data is one row of the projection, its outputs are moved: a weight moves its output by what
enters, so that m moves tell of all n m weights. Where a row has several positions (pixels, tokens), the outputs at each
of them would have to be moved by themselves; there the weights are, of which convolutions have few.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxdpp.graph.index import Array
from onnxdpp.graph.projections import Projection


class Move(NamedTuple):
    """Of output j, by what enters at i: the weight (i, j) is moved. Everywhere alike if i is None, as by the bias."""

    i: int | None
    j: int


@dataclass(frozen=True)
class Positions:
    """What enters a projection at each of its positions, and what it computes there, for one batch.

    Parameters
    ----------
    projection : Projection
    x, y : arrays
        What enters, and what is computed.
    """

    projection: Projection
    x: Array
    y: Array

    def are_rows(self, rows: int) -> bool:
        """Whether each of so many rows of the data is one position, and reads all that enters."""
        one = len(self.x) == len(self.y) == rows and self.y.size == rows * self.projection.m
        return one and self.projection.groups == 1

    @property
    def bytes_entering(self) -> int:
        """What `entering` takes."""
        part = self.projection
        return self.y.size // part.m * part.n * part.groups * self.x.itemsize

    @cached_property
    def entering(self) -> Array:
        """(p, n times the groups), p the positions: in the order of the effective weights."""
        patch = self.projection.patch
        if patch is None:
            return self.x.reshape(-1, self.x.shape[-1])
        each = int(np.prod(patch.positions(self.x.shape[2:])))
        row, position = np.divmod(np.arange(len(self.x) * each), each)
        return patch.rows(self.x, row, position)

    @cached_property
    def computed(self) -> Array:
        """(p, m)."""
        last = np.moveaxis(self.y, self.projection.axis, -1)
        return last.reshape(-1, last.shape[-1])

    def of_rows(self, fit: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(p,): which positions are of some of the rows; all, where it cannot be told whose they are."""
        if len(self.y) != len(fit):
            return np.ones(len(self.computed), bool)
        return np.repeat(fit, len(self.computed) // len(fit))

    def by(self, move: Move) -> Array:
        """(p,): what a weight of 1 adds to the output."""
        if move.i is None:
            return np.ones(len(self.computed), self.y.dtype)
        group = move.j // (self.projection.m // self.projection.groups)
        return self.entering[:, group * self.projection.n + move.i]

    def moved(self, move: Move, size: float) -> Array:
        """What is computed once `size` is added to a weight."""
        moved = self.y.copy()
        output = np.moveaxis(moved, self.projection.axis, 0)[move.j]  # a view
        output += (size * self.by(move)).reshape(output.shape).astype(output.dtype)
        return moved
