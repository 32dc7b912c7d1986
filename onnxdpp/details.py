"""What the pictures of an HTML report show: taken along while a model is pruned, and no part of the JSON report.

Of a layer of neurons, from the moments that it was chosen and refitted with: the loss of the refit for every number of
neurons kept (`error_curve`), and how alike neurons are,

    similarity(s, t) = |L'_st| / sqrt(L'_ss L'_tt)

with the DPP's kernel L' of the options, in an order that puts like beside like (the leaves of average-linkage
clustering). Of a projection whose edges go: how many outputs read each input. Of the model: how far each row of each
output moves,

    distance(i) = ‖b_i - a_i‖ / sqrt(mean_j ‖a_j‖²)

so that the root of the mean square of the distances is the relative L2 of the output.

Nothing is kept at the size of a layer squared, nor made: the similarities of at most `SHOWN` neurons become at most
`CELLS`² means. Of a row, four bytes are kept for each output.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from onnxdpp.algebra.moments import Matrix
from onnxdpp.algebra.neurons import Inputs
from onnxdpp.algebra.selection import Rule, neuron_beta, neuron_kernel
from onnxdpp.algebra.tableau import error_curve
from onnxdpp.graph.attributes import is_float
from onnxdpp.graph.batches import Batches
from onnxdpp.graph.calibration import Session
from onnxdpp.graph.index import Array, Graph
from onnxdpp.graph.layers import Layer
from onnxdpp.graph.padding import Padding, blanked
from onnxdpp.planning import Target
from onnxdpp.solving import Solution

Distances = NDArray[np.float32]

WIDEST = 3000
"""Inputs above which there is no curve: it takes n³ operations, bound by memory."""
SHOWN = 2048
"""Neurons whose similarity is shown at most: evenly spaced ones of a wider layer."""
CELLS = 192
"""Rows and columns of the picture of similarities, at most."""
TIDY = 512
"""Neurons up to which the leaves of the clustering are turned so that neighbours are alike."""


@dataclass(frozen=True)
class Similarity:
    """How alike the neurons of a layer are.

    Attributes
    ----------
    cells : (p, p) float64 array
        Means of similarities, from 0 to 1, of neurons in their order.
    kept : (c,) boolean array
        Whether each neuron stays, in the same order.
    kernel : str
        Whose similarity it is.
    covered, apart : float or None
        The median similarity of a dropped neuron, and of a kept one, with the (other) kept neuron most like it; None
        where not all neurons are looked at.
    """

    cells: Matrix
    kept: NDArray[np.bool_]
    kernel: str
    covered: float | None
    apart: float | None


@dataclass(frozen=True)
class LayerDetails:
    """Of one layer, what its pictures show; None where there is nothing to show.

    Attributes
    ----------
    curve : (n + 1,) float64 array or None
        Loss of the refit with the best k neurons, by backward elimination, for k = 0 to n.
    least : int
        How many neurons stay at least.
    similarity : Similarity or None
    readers : (n,) integer array or None
        How many outputs read each input, the most first (edges).
    missing : list of str
        What is not there, and why.
    """

    curve: Matrix | None = None
    least: int = 1
    similarity: Similarity | None = None
    readers: NDArray[np.intp] | None = None
    missing: list[str] = field(default_factory=list)


class Details:
    """Collects what the pictures show.

    Parameters
    ----------
    rule : Rule
        Whose kernel says how alike neurons are.

    Attributes
    ----------
    layers : dict
        Name -> LayerDetails.
    rows : dict
        Name of an output -> (r,) float32 array, the distance of each row.
    """

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self.layers: dict[str, LayerDetails] = {}
        self.rows: dict[str, Distances] = {}

    def watch(self, target: Target, solution: Solution) -> None:
        """Take along what there is to see of a layer; a `pruning.Watch`."""
        if solution.keep is None:
            found = LayerDetails(readers=_readers(solution))
        else:
            assert isinstance(target.part, Layer)
            found = _neurons(solution.observed, target.part, solution.keep, self._rule)
        self.layers[target.name] = found

    def compare(
        self, original: Graph, pruned: ModelProto, batches: Batches, provider: str, mask: str | None = None
    ) -> None:
        """Run both models over all rows once more, for how far each row of each float output moves, padding aside."""
        padding = Padding(original.model, mask)
        before, after = (Session(model, provider, original.folder) for model in (original.model, pruned))
        places = {name: place for place, (name, *_) in enumerate(before.outputs) if name not in original.fickle_values}
        gaps: dict[str, list[Distances]] = {name: [] for name in places}
        powers = dict.fromkeys(places, 0.0)
        for batch in batches:
            old, new = before.run(batch), after.run(batch)
            for name, place in places.items():
                found = _moved(old[place], new[place], batch.rows, padding.of(batch, old[place], name))
                if found is not None:
                    gaps[name].append(found[0].astype(np.float32))
                    powers[name] += found[1]
        for name, parts in gaps.items():
            if parts and powers[name] > 0:
                distances: Distances = np.concatenate(parts)
                distances /= np.float32(np.sqrt(powers[name] / len(distances)))
                self.rows[name] = distances


def _neurons(observed: Sequence[Inputs], layer: Layer, keep: NDArray[np.intp], rule: Rule) -> LayerDetails:
    missing: list[str] = []
    curve = similarity = None
    inputs = max(len(part.neurons) for part in observed)
    try:
        if inputs > WIDEST:
            missing.append(f"No error curve: that of {inputs:,} inputs takes long.")
        else:
            curve = _curve(observed, layer, rule.form)
        similarity = _similarity(observed, layer.n, keep, rule)
    except (ValueError, np.linalg.LinAlgError) as error:
        missing.append(f"Not everything can be shown: {error}")
    if inputs <= WIDEST and curve is None and not missing:
        missing.append("No error curve: what the consumers give does not vary.")
    return LayerDetails(curve, layer.least, similarity, missing=missing)


def _curve(observed: Sequence[Inputs], layer: Layer, form: str) -> Matrix | None:
    whole = sum(float(part.moments.variance_y.sum()) for part in observed)
    if whole <= 0:
        return None
    sections = layer.sections if layer.least > 1 else None
    curve: Matrix = np.sqrt(error_curve(observed, layer.n, form, least=layer.least, sections=sections) / whole)
    return curve


def _similarity(observed: Sequence[Inputs], n: int, keep: NDArray[np.intp], rule: Rule) -> Similarity | None:
    if n < 2:
        return None
    sample = np.arange(min(n, SHOWN)) * n // min(n, SHOWN)
    shown = observed if len(sample) == n else [_part(inputs, sample, n) for inputs in observed]
    alike = _unit(neuron_kernel(shown, len(sample), rule, neuron_beta(shown, len(sample), rule)))
    kept = np.isin(sample, keep)
    order = leaves_list(linkage(squareform(1 - alike, checks=False), "average", optimal_ordering=len(sample) <= TIDY))
    cells = _averaged(alike[np.ix_(order, order)], min(CELLS, len(order)))
    covered = apart = None
    if len(sample) == n:
        np.fill_diagonal(alike, 0)  # now without themselves
        nearest = alike[:, kept].max(1)
        covered = _median(nearest[~kept])
        apart = _median(nearest[kept]) if kept.sum() > 1 else None
    return Similarity(cells, kept[order], rule.kernel, covered, apart)


def _part(observed: Inputs, sample: NDArray[np.intp], n: int) -> Inputs:
    """What is observed of some neurons, numbered anew."""
    places = np.full(n, -1)
    places[sample] = np.arange(len(sample))
    left, moments = np.flatnonzero(np.isin(observed.neurons, sample)), observed.moments
    chosen = replace(
        moments, weights=moments.weights[left], gram=moments.gram[np.ix_(left, left)], mean_x=moments.mean_x[left],
        cross=moments.cross[left],
    )  # fmt: skip
    return Inputs(chosen, places[observed.neurons[left]])


def _unit(kernel: Matrix) -> Matrix:
    """Similarities; what never varies is like nothing but itself."""
    scale = np.sqrt(np.diagonal(kernel))
    scale = np.where(scale > 0, scale, np.inf)
    alike: Matrix = np.abs(kernel) / np.outer(scale, scale)
    np.fill_diagonal(alike, 1.0)
    return np.minimum(alike, 1.0, out=alike)


def _averaged(matrix: Matrix, size: int) -> Matrix:
    """Means over `size` times `size` blocks."""
    starts = np.arange(size) * len(matrix) // size
    lengths = np.diff(starts, append=len(matrix))
    sums = np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1)
    means: Matrix = sums / np.outer(lengths, lengths)
    return means


def _median(values: Matrix | Sequence[float]) -> float | None:
    return float(np.median(values)) if len(values) else None


def _readers(solution: Solution) -> NDArray[np.intp]:
    counts = np.concatenate([np.count_nonzero(fit.weights, axis=1) for fit in solution.fits])
    return np.sort(counts)[::-1]


def _moved(old: Array, new: Array, rows: int, padding: NDArray[np.bool_] | None) -> tuple[Matrix, float] | None:
    """The norm of each row's change, and the sum of squares of the original; None where that has no meaning."""
    if not (is_float(old) and old.ndim and len(old) == rows):
        return None
    before, after = (blanked(part, padding).reshape(rows, -1).astype(np.float64) for part in (old, new))
    sound = np.isfinite(before)
    gaps = np.where(sound, after - before, 0)
    return np.sqrt(np.einsum("ij,ij->i", gaps, gaps)), float((before[sound] ** 2).sum())
