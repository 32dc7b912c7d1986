"""N:M patterns: of every M consecutive inputs of an output, at most N weights are not zero."""

from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from onnxdpp.errors import ModelError
from onnxdpp.graph.index import Array, Graph
from onnxdpp.graph.projections import Projection, find_projections
from onnxdpp.graph.rewriting import in_order

GROUPS = (4, 2, 8, 16)
"""M, in the order in which they are tried: 2:4 is the one that hardware knows."""

FILL = 0.9
"""What share of the weights that a pattern allows must be there: so many are no chance."""


def weights_of(graph: Graph) -> dict[str, Projection]:
    """The projection that reads each constant as its weight."""
    ordered = Graph(in_order(graph.model), graph.folder)
    with suppress(ModelError):  # a weight that is not finite: of no concern here
        return {ordered.name_at(part.weight): part for part in find_projections(ordered)[0]}
    return {}


def pattern(kept: NDArray[np.bool_], projection: Projection) -> str:
    """The pattern "N:M" that every output keeps to, N at most half of M; empty where there is none.

    Parameters
    ----------
    kept : bool array
        Which entries of the weight are not zero, in its shape.
    projection : Projection
        It knows the inputs of an output and their order; of a convolution, those of a patch.

    Notes
    -----
    A last group of fewer than M inputs has at most N too. Groups that use less than 0.9 of what the pattern allows, on
    average, make none; nor does a single group.
    """
    rows = _rows(kept, projection)
    for group in GROUPS:
        whole = rows.shape[1] // group * group
        if whole < 2 * group:  # any output that keeps N of its M inputs has one group of them
            continue
        counts = np.count_nonzero(rows[:, :whole].reshape(len(rows), -1, group), axis=2)
        most, rest = int(counts.max()), np.count_nonzero(rows[:, whole:], axis=1)
        if 0 < most <= group // 2 and int(rest.max()) <= most and counts.mean() >= FILL * most:
            return f"{most}:{group}"
    return ""


def _rows(kept: NDArray[np.bool_], projection: Projection) -> Array:
    """(m, n): the inputs of each output."""
    if projection.patch is None:
        return kept if projection.transposed else kept.T
    if projection.patch.stuffing is None:
        return kept.reshape(len(kept), -1)
    rows: Array = projection.effective(kept).T != 0
    return rows
